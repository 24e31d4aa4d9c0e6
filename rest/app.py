"""The application: routes, their description in OpenAPI, and the files of the page."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from ..runtime.server.contract import Limits
from ..runtime.server_client import Edit
from . import schema
from .answers import Answers
from .faults import LEFT, Fault
from .fields import EditFields, read_fields
from .masks import Masks
from .readiness import Readiness
from .requests import IMAGES, read_form, read_json

STATIC = Path(__file__).resolve().parent / "static"
PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Path → file of the page, and its type."""

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def make_app(
    answers: Answers,
    readiness: Readiness,
    masks: Masks,
    limits: Limits,
    metrics: Callable[[], bytes],
    *,
    keys: bool,
) -> FastAPI:
    """The application.

    Args:
        answers: to edits.
        readiness: of the engine.
        masks: converts them.
        limits: of one request.
        metrics: the text of /metrics.
        keys: whether callers need a key, which the description then says; `guard` checks it.
    """
    app = FastAPI(
        title="kontext-serve",
        description="Edits pictures by instruction, with the fields and answers of OpenAI's image API.",
        version="1",
        docs_url=None,  # their page would load its scripts from elsewhere
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    private = [Depends(HTTPBearer(auto_error=False))] if keys else []
    add_edits(app, answers, masks, limits, private)
    add_operation(app, answers, readiness, metrics, private)
    add_page(app)

    @app.exception_handler(Fault)
    async def fault(_: Request, error: Fault) -> Response:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def no_route(_: Request, error: HTTPException) -> Response:
        code = "method_not_allowed" if error.status_code == 405 else "not_found"
        known = Fault(error.status_code, f"{error.detail}: /openapi.json lists what there is", code=code)
        return JSONResponse(known.body(), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        known = Fault(500, "the server failed; its log says why", code="internal_error")
        return JSONResponse(known.body(), 500)

    return app


def add_edits(app: FastAPI, answers: Answers, masks: Masks, limits: Limits, private: list[Any]) -> None:
    async def answer(request: Request, fields: EditFields, edit: Edit, name: str) -> Response:
        def link(file: str) -> str:
            return str(request.url_for("picture", name=file))

        if fields.stream:
            events = answers.stream(fields, edit, link, name)
            return StreamingResponse(events, media_type="text/event-stream", headers=STREAM_HEADERS)
        content = await while_there(request, answers.once(fields, edit, link))
        return Response(content, media_type="application/json")

    @app.post(
        "/v1/images/edits",
        summary="Edit pictures",
        responses=schema.EDITED,
        openapi_extra=schema.body("multipart/form-data", pictures=True),
        dependencies=private,
    )
    async def edits(request: Request) -> Response:
        texts, files = await read_form(request, limits)
        fields = read_fields(texts, answers.engine.model, strict=False)
        images = [file for name in IMAGES for file in files.get(name, [])]
        if not images:
            raise Fault(
                400,
                "image is missing: send one or more; /v1/images/generations draws from the prompt alone",
                param="image",
                code="missing_required_parameter",
            )
        mask = None if "mask" not in files else await masks.white_where_holes_are(files["mask"][0])
        init_image = files["init_image"][0] if "init_image" in files else None
        return await answer(request, fields, fields.edit(images, mask, init_image), "image_edit")

    @app.post(
        "/v1/images/generations",
        summary="Draw from the prompt alone",
        responses=schema.EDITED,
        openapi_extra=schema.body("application/json", pictures=False),
        dependencies=private,
    )
    async def generations(request: Request) -> Response:
        fields = read_fields(await read_json(request), answers.engine.model, strict=True)
        return await answer(request, fields, fields.edit([]), "image_generation")

    @app.get(
        "/pictures/{name}",
        summary="A picture of an answer with links",
        response_class=Response,
        responses={
            200: {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}},
            **schema.errors(404),
        },
    )
    async def picture(name: str) -> Response:
        file = answers.held.get(name)
        if file is None:
            raise Fault(404, "there is no such picture, or no longer: links expire", code="not_found")
        return Response(file.data, media_type=file.media_type, headers={"Cache-Control": "private, no-store"})


async def while_there(request: Request, work: Coroutine[Any, Any, bytes]) -> bytes:
    """The result of `work`, which is cancelled when the caller leaves. Raises Fault then."""

    async def until_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    tasks = (working, asyncio.ensure_future(until_gone()))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Fault(LEFT, "the caller has left", code="cancelled")
    finally:
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


def add_operation(
    app: FastAPI,
    answers: Answers,
    readiness: Readiness,
    metrics: Callable[[], bytes],
    private: list[Any],
) -> None:
    created = int(time.time())

    def described() -> schema.Model:
        engine = answers.engine
        return schema.Model(id=engine.model, created=created, previews=engine.previews)

    @app.get("/v1/models", dependencies=private, responses=schema.errors(401))
    async def models() -> schema.Models:
        """The one model that is served."""
        return schema.Models(data=[described()])

    @app.get("/v1/models/{name}", dependencies=private, responses=schema.errors(401, 404))
    async def model(name: str) -> schema.Model:
        """The model of this name."""
        if name != answers.engine.model:
            raise Fault(404, f"there is no model {name!r} here", param="model", code="model_not_found")
        return described()

    @app.get("/health/live")
    async def live() -> schema.Health:
        """The process answers."""
        return schema.Health(problem="")

    @app.get("/health/ready", responses={503: {"model": schema.Health, "description": "It would not edit"}})
    async def ready(response: Response) -> schema.Health:
        """An edit has worked, and what runs edits works."""
        problem = readiness.problem()
        response.status_code = 503 if problem else 200
        return schema.Health(problem=problem)

    @app.get(
        "/metrics",
        dependencies=private,
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **schema.errors(401),
        },
    )
    async def counted() -> Response:
        """Metrics for Prometheus."""
        return Response(metrics(), media_type=PROMETHEUS)


def add_page(app: FastAPI) -> None:
    for path, (file, media_type) in PAGE.items():
        content = (STATIC / file).read_bytes()

        def page(_: Request, content: bytes = content, media_type: str = media_type) -> Response:
            return Response(content, media_type=media_type, headers=PAGE_HEADERS)

        app.add_route(path, page, methods=["GET"], include_in_schema=False)
