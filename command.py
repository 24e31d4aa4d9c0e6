"""What all command lines of this package share: one-line errors, exit codes, `--version`, paths of this machine."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import re
import select
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from gettext import gettext
from pathlib import Path
from typing import Any, NoReturn, TextIO

from .errors import KontextError, one_line
from .installation import DISTRIBUTION, VERSION, missing_library
from .interrupts import Terminated, interrupt_in, interrupts

MISSING = gettext("the following arguments are required: %s").partition("%s")[0]
"""How argparse begins its message about missing arguments."""


URL = re.compile(r"[a-z][a-z0-9+.-]+://|data:[^,/]*(?:/[^,]*)?,", re.IGNORECASE)
"""Not C:\\, nor C://."""

MOST_NAME, MOST_PATH = 255, 4095
"""Bytes of a file's name, and of a path, on Linux."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What writing ends in where nothing more fits."""

HUB_URL = re.compile(
    r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)|hf:/)/(?P<id>[\w.-]+/[\w.-]+)"
    r"(?:/(?:resolve|blob)/[^/]+/(?P<file>[^?#]+))?",
    re.IGNORECASE,
)


class MissingArguments(KontextError):
    """Required arguments are missing."""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` with `--version` that raises `KontextError` with one line instead of printing its usage, and,
    of a whole command, with `--print-completion`.

    Subparsers are of this class too.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.add_argument("--version", action=Version, help="show the version and exit")
        if " " not in self.prog:
            self.add_argument(
                "--print-completion",
                action=Completion,
                choices=("bash", "zsh", "tcsh"),
                help="print a script that completes this command's flags in a shell, and exit",
            )

    def given(self, words: Sequence[str]) -> dict[str, Any]:
        """What is on a command line, without defaults: destination → value. Nothing is required."""
        defaults = [(action, action.default) for action in self._actions]
        not_given = object()
        for (
            action,
            _,
        ) in defaults:  # argparse takes SUPPRESS for the word itself where a positional one may be missing
            action.default = argparse.SUPPRESS if action.option_strings else not_given
        try:
            with self.nothing_required():
                found = vars(self.parse_args(words))
            return {name: value for name, value in found.items() if value is not not_given}
        finally:
            for action, default in defaults:
                action.default = default

    def defaults(self) -> dict[str, Any]:
        """Destination → default."""
        return {each.dest: each.default for each in self._actions if each.default is not argparse.SUPPRESS}

    def flags(self) -> dict[str, argparse.Action]:
        """Every argument but those that print something and exit: a flag's long name without its dashes → action."""
        return {
            (each.option_strings[-1].removeprefix("--") if each.option_strings else each.dest): each
            for each in self._actions
            if each.default is not argparse.SUPPRESS
        }

    def parse_known_args(  # type: ignore[override]  # the overloads of typeshed
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Unknown arguments are an error of the subcommand that got them; argparse blames the main parser. They come
        before missing ones: a mistyped flag is often the missing one."""
        try:
            options, unknown = super().parse_known_args(args, namespace)
        except MissingArguments:
            with self.nothing_required():
                _, unknown = super().parse_known_args(args, argparse.Namespace())
            if not unknown:
                raise
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown

    @contextlib.contextmanager
    def nothing_required(self) -> Iterator[None]:
        """A context in which all arguments may be missing."""
        required = [action for action in self._actions if action.required]
        for action in required:
            action.required = False
        try:
            yield
        finally:
            for action in required:
                action.required = True

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help is output too: argparse keeps silent about a full disk."""
        stream = file or sys.stderr
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.write(message)

    def error(self, message: str) -> NoReturn:
        kind = MissingArguments if message.startswith(MISSING) else KontextError
        raise kind(f"{message} ({self.prog} --help shows the flags)")


class Version(argparse.Action):
    """Prints the version."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"{DISTRIBUTION} {VERSION}")
        parser.exit()


class Completion(argparse.Action):
    """Prints a shell's completion script."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: argparse.ArgumentParser, _: object, shell: Any, *__: object) -> NoReturn:
        import shtab

        complete_files(parser, shtab.FILE)
        print(shtab.complete(parser, shell))
        parser.exit()


def complete_files(parser: argparse.ArgumentParser, kind: Any) -> None:
    """Lets shells complete the arguments that are names of files and folders, those of subcommands too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                complete_files(each, kind)
        elif action.type in (Path, local_path, local_name) or isinstance(action.type, partial):
            action.complete = kind  # type: ignore[attr-defined]


def local_name(text: str, hub: bool = False, advice: str = "download it first") -> str:
    """An argument's type: `text` if it is no URL. As a path, a URL would lose a slash.

    Args:
        text: what the user wrote.
        hub: the argument also takes hub ids.
        advice: what to do with a URL that nothing better is known for.

    Raises:
        ArgumentTypeError: it is one, or no file can have this name; argparse adds the flag.
    """
    if not URL.match(text):
        path = os.fsencode(text)
        if len(path) > MOST_PATH or max(map(len, path.split(os.fsencode(os.sep)))) > MOST_NAME:
            raise argparse.ArgumentTypeError(
                f"takes files of this machine, whose names are shorter than {text[:40]}…"
            )
        return text
    shown = text if len(text) <= 200 else f"{text[:40]}…"
    if text.lower().startswith("data:"):
        advice = "write it to a file first"
    elif text.lower().startswith("file:///"):
        advice = f"write {text[7:]}"
    elif (on_hub := HUB_URL.match(text)) and hub:
        advice = f"write its hub id, {on_hub['id']}"
    elif on_hub:
        advice = f"download it first, as by `hf download {' '.join(filter(None, on_hub.groups()))}`"
    kinds = "files of this machine or hub ids owner/name" if hub else "files of this machine"
    raise argparse.ArgumentTypeError(f"takes {kinds}, not {shown}: {advice}")


def local_path(text: str, advice: str = "download it first") -> Path:
    """An argument's type: a path of this machine. Raises ArgumentTypeError for a URL."""
    return Path(local_name(text, advice=advice))


def run_command(work: Callable[[], int | None], after_interrupt: Callable[[], str] = str) -> int:
    """Runs a command and returns its exit code. Errors become one line on stderr.

    Args:
        work: the command, parsing of its arguments included; returns its exit code, None for 0.
        after_interrupt: called after Ctrl-C or SIGTERM; returns what is printed behind "interrupted".

    Returns:
        0 for success or what `work` returned, 2 for an error that the user can fix, such as output that cannot be
        written, 130 after Ctrl-C, 143 after SIGTERM, 1 if the reader of stdout has gone.

    Raises:
        SystemExit: `--help` or `--version` was given.
        Exception: a bug, with its traceback; KontextError, MemoryError, ImportError, BrokenPipeError, a full disk and
            what Ctrl-C caused do not.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # names of files are of any bytes, terminals of any encoding
    try:
        with interrupts():  # around what is printed too: a second Ctrl-C then ends the process at once
            code = run_and_report(work, after_interrupt)
    except SystemExit:
        if flush_stdout() == 2:
            raise SystemExit(2) from None
        raise
    except BaseException:
        flush_stdout()
        raise
    unwritten = flush_stdout()
    return max(code, unwritten) if unwritten == 2 else code or unwritten


def run_and_report(work: Callable[[], int | None], after_interrupt: Callable[[], str]) -> int:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            return work() or 0
    except KontextError as error:
        if cause := interrupt_in(error):
            return interrupted(cause, after_interrupt())
        return fail(str(error))
    except MemoryError:
        return fail("not enough memory")
    except KeyboardInterrupt as interrupt:
        return interrupted(interrupt, after_interrupt())
    except BrokenPipeError:
        if not stdout_is_broken():
            raise
        return 1
    except Exception as error:
        if cause := interrupt_in(error):
            return interrupted(cause, after_interrupt())
        if isinstance(error, OSError) and (error.errno in NO_ROOM or not stdout_takes_more()):
            discard(sys.stdout)
            return unwritable(error)
        if isinstance(error, ImportError):
            missing = missing_library(error.name or "") if isinstance(error, ModuleNotFoundError) else None
            return fail(missing or f"a library cannot be loaded: {error}")
        raise


def fail(message: str) -> int:
    """Prints `message` as one line and returns the exit code of errors that the user can fix."""
    tell(f"error: {' '.join(one_line(message).split())}")
    return 2


def unwritable(fault: OSError) -> int:
    """`fail` for output that could not be written."""
    where = f" {fault.filename}" if fault.filename else ""
    return fail(f"cannot write{where}: {fault.strerror or fault}")


def tell(line: str) -> None:
    """Prints a line on stderr; nothing if it cannot be written: the exit code says it then."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def interrupted(interrupt: KeyboardInterrupt, more: str) -> int:
    tell(f"\ninterrupted{more}")
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Replaces `warnings.showwarning`: one line, without the place in the code."""
    tell(f"warning: {one_line(str(message))}")


def stdout_is_broken() -> bool:
    """Whether the process that reads stdout has gone, as in `… | head`."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def stdout_takes_more() -> bool:
    """Whether what is buffered for stdout can be written; what could not be written is buffered still."""
    try:
        if sys.stdout is not None:  # closed by the caller, as by >&-
            sys.stdout.flush()
    except OSError:
        return False
    return True


def flush_stdout() -> int:
    """Writes what is buffered for stdout; returns 1 if nobody reads it and 2, after an error's line, if it cannot be
    written."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)
        return 1
    except OSError as fault:
        discard(sys.stdout)
        return unwritable(fault)
    return 0


def discard(stream: TextIO) -> None:
    """Lets the rest of stdout or stderr go to /dev/null: Python flushes at exit, and would print the error that it
    meets there."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
