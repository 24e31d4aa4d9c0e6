"""How this package starts Python programs of its own: never with code from the folder that the user works in.

`python -m module` and `python -c code` look for every module in the current directory first, and people run these
commands in folders that they downloaded.
"""

from __future__ import annotations

import os
import sys
import threading
import time

ONLY_INSTALLED = "import sys; sys.path = [place for place in sys.path if place]; "
"""Python before 3.11 has no `-P`. Nothing but `sys`, which is built in, is imported before the current directory,
written as '', leaves the path; places of PYTHONPATH stay."""


def module_command(module: str, *words: str) -> list[str]:
    """The command of `python -m module words…`."""
    return code_command(
        f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)", *words
    )


def code_command(code: str, *words: str) -> list[str]:
    """The command of `python -c code words…`."""
    return [sys.executable, "-c", ONLY_INSTALLED + code, *words]


def protect_libraries() -> None:
    """Keeps the current directory from the Python programs that libraries start, as torch.compile does to try a
    processor's instructions. Python 3.10 does not know the variable."""
    os.environ.setdefault("PYTHONSAFEPATH", "1")


def end_with_parent() -> None:
    """Ends this process within a second of the one that started it, which may be killed before it can end this one."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
