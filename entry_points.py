"""What the commands start with: Ctrl-C while a command's modules are imported, or while Python ends, is no traceback.

Nothing else is imported before that is arranged, and `_signal` is part of the interpreter: `signal` itself takes 3 ms.
Before this module Python reads its own files, where Ctrl-C is out of our hands.
"""

from __future__ import annotations

import os
from _signal import SIGINT, default_int_handler, getsignal, signal  # type: ignore[import-not-found]

TYPE_CHECKING = False  # typing would be imported for it
if TYPE_CHECKING:
    from collections.abc import Callable

MODULES = {
    "export": "kontext.export.cli.main",
    "edit": "kontext.runtime.cli",
    "serve": "kontext.rest.cli",
    "bench": "kontext.bench.cli",
    "batch": "kontext.batch.cli",
}
"""Function below → the module whose `main` it runs."""


def export() -> int:
    """`kontext-export`."""
    return run("export")


def edit() -> int:
    """`kontext-edit`."""
    return run("edit")


def serve() -> int:
    """`kontext-serve`."""
    return run("serve")


def bench() -> int:
    """`kontext-bench`."""
    return run("bench")


def batch() -> int:
    """`kontext-batch`."""
    return run("batch")


def run(name: str) -> int:
    """Runs a command; returns its exit code."""
    # Ignored in the background, as under nohup: then it stays so.
    interruptible = getsignal(SIGINT) == default_int_handler
    if not interruptible:
        return load(name)()
    signal(SIGINT, leave)
    main = load(name)
    signal(SIGINT, default_int_handler)  # main knows what to do
    try:
        return main()
    finally:
        signal(SIGINT, leave)


def load(name: str) -> Callable[[], int]:
    """The `main` of a command's module."""
    from importlib import import_module

    main: Callable[[], int] = import_module(MODULES[name]).main
    return main


def leave(*_: object) -> None:
    """Ends the process at once: there is nothing to clean up before `main` and after it."""
    os.write(2, b"\ninterrupted\n")
    os._exit(130)
