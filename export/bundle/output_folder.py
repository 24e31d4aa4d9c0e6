"""The folder that an export writes: new, or an existing one of the same kind and nothing else, replaced as a whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...bundle_folder import FORMAT, MANIFEST_NAME
from ...errors import KontextError
from ...files import TEMPORARY, fsync


@dataclass(frozen=True)
class Kind:
    """A kind of folder: its short name and its title for error messages."""

    name: str
    title: str
    files: Callable[[Path], set[str] | None]
    """Names of the files that the folder at a path consists of; None if it is not of this kind."""
    ignored: str | None = None
    """Folders of this name may be in it; what they hold may be deleted."""

    def everything(self, root: Path) -> Iterator[Path]:
        """All files below `root` that somebody may miss."""
        for path in sorted(root.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                continue
            if path.parent.name != self.ignored and not TEMPORARY.fullmatch(path.name):
                yield path


def bundle_files(folder: Path) -> set[str] | None:
    """The files of the bundle at `folder`; None if its manifest does not say it is a bundle."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return None
        return {MANIFEST_NAME, *manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


BUNDLE = Kind("bundle", "bundle", bundle_files)


def partial_folder(output: Path) -> Path:
    """OUT.partial: what `output` is called until it is finished."""
    return output.with_name(output.name + ".partial")


def check_output(output: Path, kind: Kind, force: bool) -> None:
    """Checks that `output` can be written: a new folder, or with `force` one of this kind that holds nothing else.

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
        raise KontextError(f"{output} exists and is not a {kind.title}: choose another folder")
    if not force:
        raise KontextError(f"{output} exists: give --force to replace it, or choose another folder")
    for path in kind.everything(output):
        if path.relative_to(output).as_posix() not in (files or ()):
            raise KontextError(
                f"{path} is not the {kind.name}'s: move it away, then --force will replace {output}"
            )
    replaced = replaced_folder(output)
    if replaced.exists():
        raise KontextError(
            f"{replaced} is in the way: an earlier export was killed while it replaced {output}"
        )


def replaced_folder(output: Path) -> Path:
    """OUT.replaced: what an existing `output` is called for the moment in which it is replaced."""
    return output.with_name(output.name + ".replaced")


def publish(partial: Path, output: Path, kind: Kind, force: bool) -> None:
    """Renames OUT.partial to OUT; an existing OUT stays intact until then.

    Raises:
        KontextError: something is in the way by now; OUT.partial is left.
    """
    check_output(output, kind, force)
    fsync(partial)
    if os.path.lexists(output):
        replaced = replaced_folder(output)
        output.rename(replaced)
        partial.rename(output)
        shutil.rmtree(replaced)
    else:
        partial.rename(output)
    fsync(output.absolute().parent)
