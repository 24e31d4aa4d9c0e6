"""Answers to an edit: one of JSON, or server-sent events, as OpenAI's image API sends them."""

from __future__ import annotations

import asyncio
import base64
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from ..errors import KontextError
from ..runtime.server.measures import Counters
from ..runtime.server_client import Edit
from .calls import Call, Done, Engine, Event, Preview, Step
from .faults import RETRY_AFTER, Fault, fault_of, outcome_of
from .fields import EditFields
from .held import Held
from .pictures import MEDIA_TYPES, Base64, encode, json_bytes

BEAT_SECONDS = 15.0
"""Between two signs of life in a stream; proxies cut silent connections after 30 s and more."""


class Answers:
    """Runs edits on an engine, and words what becomes of them; for one event loop.

    Args:
        engine: runs the edits.
        counters: the metrics.
        held: pictures behind links.
        max_wait: seconds that an edit may wait for its begin.
    """

    def __init__(self, engine: Engine, counters: Counters, held: Held, max_wait: float) -> None:
        self.engine = engine
        self.counters = counters
        self.held = held
        self.max_wait = max_wait
        self.calls: set[Call] = set()
        self.closing = False

    def cancel_all(self) -> None:
        """Stops all edits: the server shuts down."""
        self.closing = True
        for call in self.calls:
            call.closing = True
            call.cancel()

    async def events(
        self, edit: Edit, pictures: int, *, max_wait: float | None = None, previews: bool = False
    ) -> AsyncGenerator[Event | None, None]:
        """What happens to an edit until all its pictures are done; None if nothing has for BEAT_SECONDS.

        Closing this, at whatever point, stops the edit. `max_wait` stands instead of the one of all edits. Raises Fault
        if the edit fails, cannot be taken, or waits too long.
        """
        max_wait = self.max_wait if max_wait is None else max_wait
        call = Call(pictures, self.counters, previews)
        self.calls.add(call)
        try:
            try:
                self.engine.submit(edit, call.callers)
            except KontextError as error:
                for caller in call.callers:
                    caller.count(outcome_of(error))
                raise fault_of(error) from None
            latest = time.monotonic() + max_wait
            begun, missing = False, pictures
            while missing:
                patience = BEAT_SECONDS if begun else min(BEAT_SECONDS, latest - time.monotonic())
                try:
                    event = await asyncio.wait_for(call.events.get(), max(patience, 0.01))
                except asyncio.TimeoutError:
                    if not begun and time.monotonic() >= latest:
                        raise Fault(
                            429,
                            f"the edit waited {max_wait:g} s and did not begin: try again later",
                            code="queue_timeout",
                            headers=RETRY_AFTER,
                        ) from None
                    yield None
                    continue
                if isinstance(event, Fault):
                    raise event
                begun = True
                missing -= isinstance(event, Done)
                yield event
        finally:
            self.calls.discard(call)
            call.cancel()

    async def once(self, fields: EditFields, edit: Edit, link: Callable[[str], str]) -> bytes:
        """The answer with all pictures, in JSON. Raises Fault."""
        items: dict[int, dict[str, Any]] = {}
        warnings: list[str] = []
        size = fields.size
        async with aclosing(self.events(edit, fields.n)) as events:
            async for event in events:
                if isinstance(event, Done):
                    items[event.number] = {
                        **await self.picture(fields, event, link),
                        "seed": edit.seed + event.number,
                    }
                    warnings += event.warnings
                    size = spelled(event)
        return json_bytes(
            {
                "created": int(time.time()),
                "data": [items[number] for number in sorted(items)],
                "background": "opaque",
                "output_format": fields.output_format,
                "size": size,
                "warnings": list(dict.fromkeys(warnings)),
            }
        )

    async def stream(
        self, fields: EditFields, edit: Edit, link: Callable[[str], str], name: str
    ) -> AsyncGenerator[bytes, None]:
        """The same as server-sent events; `name` is image_edit or image_generation. A fault is an event too."""
        previews: dict[int, Base64] = {}
        partial: Counter[int] = Counter()
        wanted = fields.partial_images > 0
        try:
            async with aclosing(self.events(edit, fields.n, previews=wanted)) as events:
                async for event in events:
                    if event is None:
                        yield b": waiting\n\n"
                    elif isinstance(event, Preview):
                        file = encode(event.picture, fields.output_format, None, metadata=False)
                        previews[event.number] = Base64(base64.b64encode(file))
                    elif isinstance(event, Step):
                        if fields.progress:
                            step = {"index": event.number, "step": event.step, "steps": event.steps}
                            yield sent("kontext.progress", step)
                        if event.number in previews and is_due(event, fields.partial_images):
                            yield sent(
                                f"{name}.partial_image",
                                {
                                    "b64_json": previews[event.number],
                                    "partial_image_index": partial[event.number],
                                    "created_at": int(time.time()),
                                    "background": "opaque",
                                    "output_format": fields.output_format,
                                    "quality": "auto",
                                    "size": fields.size,
                                    "index": event.number,
                                },
                            )
                            partial[event.number] += 1
                    elif isinstance(event, Done):
                        yield sent(
                            f"{name}.completed",
                            {
                                **await self.picture(fields, event, link),
                                "created_at": int(time.time()),
                                "background": "opaque",
                                "output_format": fields.output_format,
                                "quality": "auto",
                                "size": spelled(event),
                                "index": event.number,
                                "seed": edit.seed + event.number,
                                "warnings": list(event.warnings),
                            },
                        )
        except Fault as fault:
            yield sent("error", fault.body())

    async def picture(self, fields: EditFields, done: Done, link: Callable[[str], str]) -> dict[str, Any]:
        """{"b64_json": …} or {"url": …} of a picture."""

        def work() -> bytes | Base64:
            file = encode(
                done.picture, fields.output_format, fields.output_compression, metadata=fields.metadata
            )
            return Base64(base64.b64encode(file)) if fields.response_format == "b64_json" else file

        made = await asyncio.to_thread(work)
        if isinstance(made, Base64):
            return {"b64_json": made}
        suffix = fields.output_format
        return {"url": link(self.held.put(made, MEDIA_TYPES[suffix], suffix))}


def is_due(step: Step, count: int) -> bool:
    """Whether one of `count` partial pictures goes with a step: they are spread over the edit, none with its end."""
    parts = count + 1
    return step.step < step.steps and step.step * parts // step.steps > (step.step - 1) * parts // step.steps


def spelled(done: Done) -> str:
    return f"{done.picture.width}x{done.picture.height}"


def sent(name: str, data: dict[str, Any]) -> bytes:
    """An event in its wire format."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), json_bytes({"type": name, **data}))
