"""The folder that an export writes: new, or one of the same kind and nothing else, which is replaced whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import KontextError
from .journal import fsync_folder


@dataclass(frozen=True)
class Kind:
    """What is written, in the words of messages."""

    name: str
    title: str
    files: Callable[[Path], set[str] | None]
    """What the folder at a path consists of; None where it is not of this kind."""
    ignored: str | None = None
    """Folders of this name may be in it, and are nobody's."""

    def everything(self, root: Path) -> Iterator[Path]:
        """All files below `root` that somebody may miss."""
        for path in sorted(root.rglob("*")):
            if (path.is_symlink() or not path.is_dir()) and path.parent.name != self.ignored:
                yield path


def check_output(output: Path, kind: Kind, force: bool) -> None:
    """Refuses to touch whatever is at `output` and is not of this kind, all of it.

    Raises:
        KontextError: says what is in the way.
    """
    parent = output.absolute().parent
    if not parent.is_dir():
        raise KontextError(f"{parent} is not a folder: make it first")
    if not os.path.lexists(output):
        return
    if not output.is_dir():
        raise KontextError(f"{output} exists and is not a folder")
    files = kind.files(output)
    if files is None and any(output.iterdir()):
        raise KontextError(
            f"{output} exists and is not a {kind.title}: it is left alone, choose another folder"
        )
    if not force:
        raise KontextError(f"{output} exists: give --force to replace it, or choose another folder")
    for path in kind.everything(output):
        if path.relative_to(output).as_posix() not in (files or ()):
            raise KontextError(
                f"{path} is not the {kind.name}'s: move it away, then --force will replace {output}"
            )


def publish(partial: Path, output: Path, kind: Kind, force: bool) -> None:
    """OUT.partial becomes OUT; what was there stays whole until the new one is."""
    fsync_folder(partial)
    if os.path.lexists(output):
        check_output(output, kind, force)  # once more: it took its time, and somebody may have used it
        replaced = output.with_name(output.name + ".replaced")
        if replaced.exists():
            raise KontextError(
                f"{replaced} is in the way: an earlier export was killed while it replaced {output}"
            )
        output.rename(replaced)
        partial.rename(output)
        shutil.rmtree(replaced)
    else:
        partial.rename(output)
    fsync_folder(output.absolute().parent)
