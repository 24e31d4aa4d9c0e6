"""Ctrl-C and SIGTERM as exceptions of the main thread, so that what is open is closed and what is temporary removed.

Python drops an exception that is raised in a callback of its own, such as a hook of `fork` or a `__del__`; an interrupt
that comes then is raised again a moment later.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

AGAIN_SECONDS = 0.05
"""After which a dropped interrupt is raised again: the callback that it came in has ended."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, as from a scheduler or a container's engine: what Ctrl-C cleans up is cleaned up."""


KINDS: dict[int, type[KeyboardInterrupt]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}

USUAL: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
"""What handles a signal if nobody has changed that. A job in the background has SIGINT ignored, and keeps it so."""


@contextlib.contextmanager
def interrupts() -> Iterator[None]:
    """A context in which SIGINT and SIGTERM raise KeyboardInterrupt and `Terminated` in the main thread; a second one,
    while the first is cleaned up after, ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own = [number for number, usual in USUAL.items() if signal.getsignal(number) == usual]
    hook = sys.unraisablehook

    def raise_again(dropped: Any) -> None:
        kind = dropped.exc_type
        if not issubclass(kind, KeyboardInterrupt):
            hook(dropped)
            return
        number = next(number for number, each in KINDS.items() if kind is each)
        threading.Timer(AGAIN_SECONDS, send_to_main_thread, [number]).start()

    try:
        for number in own:
            signal.signal(number, interrupt)
        sys.unraisablehook = raise_again
        yield
    finally:
        sys.unraisablehook = hook
        for number in own:
            signal.signal(number, USUAL[number])


def send_to_main_thread(number: int) -> None:
    """Sends it a signal, which also ends what it waits for."""
    if sys.platform == "win32":
        signal.raise_signal(number)
    else:
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, number)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handles a signal."""
    if interrupt_in(sys.exc_info()[1]) is not None:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    raise KINDS[number]


def interrupt_in(error: BaseException | None) -> KeyboardInterrupt | None:
    """The Ctrl-C or SIGTERM that is behind an error: libraries that are loading turn it into an ImportError or a
    RecursionError."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return error
        error = error.__cause__ or error.__context__
    return None
