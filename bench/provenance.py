"""Where a result comes from: the command as typed, the commit, when and how long, and the state of the machine.

`begin` notes what can only be known at the start of a command; `stamped` adds all of it to the result at the end.
Nothing here names the machine, its user or its folders.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

from ..installation import ROOT, VERSION, origin
from .clocks import describe_clocks

SCHEMA = 1
"""Version of results, as `schema/result.schema.json` describes them. Those from before versions have none."""

NOT_CODE = (":!bench/results", ":!docs", ":!*.md")
"""Of the repository: writing results and documents does not change what is measured."""

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Run:
    """A command under way."""

    command: str
    seed: int | None
    warmup: int | None
    """Rounds that did not count, before timing started."""
    state: str | None
    """warm: what is timed has run before; cold: every time in a new process; None: nothing is timed."""
    source: dict[str, Any] | None
    load: list[float] | None
    started: datetime
    clock: float


CURRENT: ContextVar[Run | None] = ContextVar("run", default=None)


def begin(
    words: Sequence[str],
    *,
    seed: int | None = None,
    warmup: int | None = None,
    state: str | None = None,
) -> Run:
    """Notes the start of `kontext-bench words…`, which is the run that results are of from now on."""
    run = Run(
        command=shlex.join(["kontext-bench", *map(nameless, words)]),
        seed=seed,
        warmup=warmup,
        state=state,
        source=source(),
        load=load_average(),
        started=datetime.now(timezone.utc),
        clock=time.monotonic(),
    )
    CURRENT.set(run)
    return run


def stamped(result: dict[str, Any]) -> dict[str, Any]:
    """The result with its schema's version, and its provenance as the last entry."""
    first = {"what": result["what"]} if "what" in result else {}
    rest = {name: value for name, value in result.items() if name not in ("what", "schema", "provenance")}
    return {**first, "schema": SCHEMA, **rest, "provenance": provenance()}


def provenance() -> dict[str, Any]:
    """Of the current run, as JSON; a result that no command made began just now."""
    run = CURRENT.get() or begin([])
    return {
        "command": run.command,
        "version": VERSION,
        "source": run.source,
        "started": run.started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": round(time.monotonic() - run.clock, 3),
        "seed": run.seed,
        "warmup": run.warmup,
        "state": run.state,
        "load_average": run.load,
        "clocks": describe_clocks(),
    }


def source() -> dict[str, Any] | None:
    """The commit of the code that runs, and whether it was modified; None if it was installed from something else."""
    if (ROOT / ".git").exists():
        commit = git("rev-parse", "HEAD")
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", *NOT_CODE)
        return {"commit": commit, "modified": bool(changes)} if commit else None
    commit = origin().get("vcs_info", {}).get("commit_id")
    return {"commit": commit, "modified": False} if commit else None


def git(*words: str) -> str:
    """What git says of this package's repository; "" if it cannot."""
    command = ["git", "-C", str(ROOT), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def load_average() -> list[float] | None:
    """Over the last 1, 5 and 15 minutes; None where the system has none."""
    try:
        return [round(each, 2) for each in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def nameless(word: str) -> str:
    """A word of a command line without what would name this machine: of paths that begin at a root, at a home or above
    the current folder the last part stays, of URLs the host does not, unless it is this machine."""
    if "://" in word:
        return nameless_url(word)
    return "".join(map(nameless_path, re.split(r"([=,])", word)))


def nameless_path(part: str) -> str:
    windows = PureWindowsPath(part)
    if windows.drive and windows.root:
        return windows.name or part
    if part.startswith(("/", "~")) or ".." in Path(part).parts:
        return Path(part).name if Path(part).name not in ("", "..") else part[:1]
    return part


def nameless_url(word: str) -> str:
    flag, equals, url = word.rpartition("=") if word.startswith("-") else ("", "", word)
    parts = urlsplit(url)
    host, port = re.fullmatch(r"(?:.*@)?(.*?)(:\d+)?", parts.netloc, re.DOTALL).groups()  # type: ignore[union-attr]
    if parts.scheme == "file":
        return f"{flag}{equals}{Path(parts.path).name}"
    return f"{flag}{equals}{parts.scheme}://{host if host in LOOPBACK else 'HOST'}{port or ''}"
