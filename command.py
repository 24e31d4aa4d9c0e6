"""What every command line of this package has in common: one-line errors, exit codes, `--version`."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from .errors import KontextError

DISTRIBUTION = "kontext-export"


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `KontextError` with one line instead of printing its usage, and has `--version`.

    Parsers of subcommands are of this class too.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.add_argument("--version", action=Version, help="show the version and exit")

    def error(self, message: str) -> NoReturn:
        raise KontextError(f"{message} ({self.prog} --help shows the flags)")


class Version(argparse.Action):
    """Prints the installed version; it is looked up only when asked for, which takes 30 ms."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version(DISTRIBUTION)
        except PackageNotFoundError:  # used in place, as inside a server's model repository
            number = "(not installed)"
        print(f"{DISTRIBUTION} {number}")
        parser.exit()


def run_command(work: Callable[[], int | None], after_interrupt: Callable[[], str] = str) -> int:
    """Runs a command and returns its exit code; what went wrong becomes one line on stderr.

    Args:
        work: the command; returns its exit code, None for 0.
        after_interrupt: after Ctrl-C, what is to be said behind "interrupted".

    Returns:
        0 for success or what `work` returned, 2 for what the user can mend, 130 after Ctrl-C.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            return work() or 0
    except KontextError as error:
        return fail(str(error))
    except MemoryError:
        return fail("not enough memory")
    except KeyboardInterrupt:
        return interrupted(after_interrupt())
    except ImportError as error:
        if caused_by_interrupt(error):
            return interrupted(after_interrupt())
        return fail(f"a library cannot be loaded: {error}")
    except BrokenPipeError:  # `… | head` has read enough; nothing more can be written, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def interrupted(more: str) -> int:
    print(f"\ninterrupted{more}", file=sys.stderr)
    return 130


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """In the place of `warnings.showwarning`: one line, without the place in the code."""
    print(f"warning: {message}", file=sys.stderr)


def caused_by_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C while a compiled library was loading has surfaced as an ImportError."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
