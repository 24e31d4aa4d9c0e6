"""Kinds of folders that an export writes, and which of the files in one are its own, so that they may be deleted.

What a manifest lists is not enough: anybody can write one. A file also has to have a name that an export gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...bundle_folder import FORMAT, MANIFEST_NAME, MAX_MANIFEST_BYTES
from ...errors import KontextError
from ...files import TEMPORARY
from ...regular_files import read_json
from ...runtime.bundle import GRAPHS, TOKENIZERS

JOURNAL = "export-journal.json"
"""In a folder that is being written, and in a new one until the folder that it replaces is gone."""


@dataclass(frozen=True)
class Kind:
    """A kind of folder: its short name and its title for error messages."""

    name: str
    title: str
    marker: str
    """The file that lists the others. It is written last and deleted last."""
    listed: Callable[[Path], set[str] | None]
    """Names of the files that the folder at a path says it consists of; None if it is not of this kind."""
    names: re.Pattern[str]
    """Paths in the folder that an export writes."""
    unlisted: re.Pattern[str]
    """Those of them that may be there without being listed: a killed process leaves them."""

    def is_at(self, folder: Path) -> bool:
        """Whether `folder` is a folder of this kind, not a link to one."""
        return folder.is_dir() and not folder.is_symlink() and self.listed(folder) is not None

    def strangers(self, folder: Path) -> Iterator[str]:
        """Paths of the files in `folder` that are not the kind's. In an unfinished one, which lists none, a name is
        enough."""
        listed = None if (folder / JOURNAL).is_file() else self.listed(folder)
        for name in files_in(folder):
            if not self.is_own(name) or not (listed is None or name in listed or self.may_be_unlisted(name)):
                yield name

    def is_own(self, name: str) -> bool:
        """Whether an export gives this name to a file, or has a temporary file of this name."""
        return bool(self.names.fullmatch(name)) or self.may_be_unlisted(name)

    def may_be_unlisted(self, name: str) -> bool:
        return name == JOURNAL or is_temporary(name) or bool(self.unlisted.fullmatch(name))

    def clear(self, folder: Path, keep: tuple[str, ...] = ()) -> None:
        """Deletes the kind's files in `folder`, its marker last, then folders that are empty; others' files stay."""
        strangers = {*self.strangers(folder), *keep}
        own = [name for name in files_in(folder) if name not in strangers]
        for name in sorted(own, key=lambda name: name == self.marker):
            if name == self.marker:
                remove_empty(folder)  # so that a folder without its marker is empty
            (folder / name).unlink()
        remove_empty(folder)

    def remove(self, folder: Path) -> bool:
        """Deletes the kind's files in `folder`, and the folder; False if it is still there, with others' files."""
        self.clear(folder)
        if any(folder.iterdir()):
            return False
        folder.rmdir()
        return True


def is_temporary(name: str) -> bool:
    """Whether a path is that of an unfinished file, which a killed process leaves."""
    return bool(TEMPORARY.fullmatch(name.rpartition("/")[2]))


def files_in(folder: Path) -> list[str]:
    """Paths of everything below `folder` but folders, links to folders included, sorted."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )


def remove_empty(folder: Path) -> None:
    """Removes the empty folders in `folder`."""
    inner = [path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()]
    for path in sorted(inner, key=lambda path: -len(path.parts)):
        if not any(path.iterdir()):
            path.rmdir()


def listed_in(marker: Path, format: str) -> set[str] | None:
    """The names in `files` of a JSON file that has this `format`, and its own; None if it is another file."""
    try:
        data = read_json(marker, MAX_MANIFEST_BYTES, "a manifest")
        return {marker.name, *data["files"]} if data["format"] == format else None
    except (KontextError, OSError, KeyError, TypeError):
        return None


GRAPH = "|".join(map(re.escape, GRAPHS))
COMPILED = r"kernels/sm_\d+/(?:kernels\.json|[\w.-]+\.cubin)|engines/sm\d+/[^/]+\.engine"
BUNDLE_NAMES = (
    rf"{re.escape(MANIFEST_NAME)}|(?:{GRAPH})\.onnx|weights/(?:{GRAPH})\.safetensors"
    rf"|tokenizers/(?:{'|'.join(TOKENIZERS)})\.json|{COMPILED}"
)

BUNDLE = Kind(
    "bundle",
    "bundle",
    MANIFEST_NAME,
    lambda folder: listed_in(folder / MANIFEST_NAME, FORMAT),
    names=re.compile(BUNDLE_NAMES),
    unlisted=re.compile(COMPILED),
)
