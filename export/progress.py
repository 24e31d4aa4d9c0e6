"""Progress bars of an export, on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from tqdm import tqdm


class Progress:
    """Draws bars if `shown`, otherwise nothing. Each bar yields a function that advances it."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown

    @contextlib.contextmanager
    def bytes(self, name: str, total: int) -> Iterator[Callable[[int], object]]:
        """A bar of bytes with rate and remaining time."""
        with tqdm(
            total=total, desc=name, unit="B", unit_scale=True, disable=not self.shown, leave=False
        ) as bar:
            yield bar.update

    @contextlib.contextmanager
    def steps(self, name: str, total: int | None) -> Iterator[Callable[[int], object]]:
        with tqdm(total=total, desc=name, disable=not self.shown, leave=False) as bar:
            yield bar.update

    @contextlib.contextmanager
    def phases(self, name: str) -> Iterator[Callable[[str, int, int], object]]:
        """A bar with a name for the current phase; yields a function of (phase, steps done, steps in all)."""
        with tqdm(total=0, desc=name, disable=not self.shown, leave=False) as bar:

            def on_phase(phase: str, done: int, total: int) -> None:
                bar.total = total
                bar.set_postfix_str(phase, refresh=False)
                bar.n = done
                bar.refresh()

            yield on_phase
