"""What `kontext-edit` says of a run: lines for people, one JSON object for programs, and with `-v` what ran where."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import one_line

if TYPE_CHECKING:
    from PIL import Image


@dataclass
class Report:
    """Collects while the command runs; `print` ends it.

    Args:
        json: print one JSON object on stdout, and nothing else there.
        verbose: print details on stderr.
        quiet: print nothing but warnings, and what `json` asks for.
        stdout_is_taken: the picture goes there.
    """

    json: bool = False
    verbose: bool = False
    quiet: bool = False
    stdout_is_taken: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    """Stage → how long it took."""
    warned: list[str] = field(default_factory=list)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @property
    def stream(self) -> TextIO:
        """Where lines for people go."""
        return sys.stderr if self.json or self.stdout_is_taken else sys.stdout

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - started

    @contextlib.contextmanager
    def warnings(self) -> Iterator[None]:
        """A context whose warnings are printed as before, and kept."""
        show = warnings.showwarning

        def keep(message: Warning | str, *arguments: Any, **more: Any) -> None:
            self.warned.append(one_line(str(message)))
            show(message, *arguments, **more)

        warnings.showwarning = keep
        try:
            yield
        finally:
            warnings.showwarning = show

    def detail(self, line: str) -> None:
        """A line for `-v`, printed at once."""
        if self.verbose:
            print(one_line(line), file=sys.stderr)

    def say(self, line: str) -> None:
        """A line that is printed at once."""
        if not self.quiet:
            print(line, file=self.stream)

    def wrote(self, picture: Image.Image, path: Path, seed: int) -> None:
        """Keeps what is said of a picture's file."""
        from .metadata import KEY

        entry = {"path": str(path), "seed": seed, "size": list(picture.size)}
        self.pictures.append({**entry, "metadata": picture.info.get(KEY)})
        self.notes.append(f"wrote {path} ({picture.width}x{picture.height})")

    def print(self) -> None:
        """Prints what was collected."""
        self.seconds["total"] = time.perf_counter() - self.started
        self.detail("; ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items()))
        if self.json:
            seconds = {name: round(each, 6) for name, each in self.seconds.items()}
            print(json.dumps({"pictures": self.pictures, "seconds": seconds, "warnings": self.warned}))
        elif self.notes:
            self.say("\n".join(self.notes))
