"""The files of a bundle: each one in the manifest's `files` is there, is inside the folder, and has its size.

What is executed is compared with its SHA-256 whenever it is loaded (`Bundle.content`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import KontextError
from .fields import Fields
from .manifest_ranges import MOST_FILES

SHA256 = re.compile("[0-9a-f]{64}")
"""A SHA-256 as manifests write it."""

REBUILT = {
    "engines/": "build the engines again",
    "kernels/": "compile the kernels again (kontext-export BUNDLE --kernels)",
}
"""Folder of what is compiled from the rest of a bundle → what to do if it is damaged."""


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hexadecimal) of a file of the bundle."""

    size: int
    sha256: str


def file_digest(path: Path, advance: Callable[[int], object] | None = None) -> str:
    """The SHA-256 of a file, in hexadecimal; `advance` is called as in `Bundle.verify`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if advance is not None:
                advance(len(block))
    return digest.hexdigest()


def check_sha256(path: Path, found: str, wanted: str, what_to_do: str) -> None:
    """Raises KontextError, which ends in `what_to_do`, unless the SHA-256 of `path` is the wanted one (hexadecimal)."""
    if found != wanted:
        raise KontextError(f"{path} is damaged: its SHA-256 is not the manifest's; {what_to_do}")


def unlisted_files(folder: Path, files: Mapping[str, FileEntry]) -> list[str]:
    """Files that lie where a bundle has what is executed, but are not in its manifest: none of them is ever loaded."""
    places = ("*.onnx", "tokenizers/*", "engines/*/*", "kernels/*/*")
    found = (path.relative_to(folder).as_posix() for place in places for path in folder.glob(place))
    return sorted(name for name in found if name not in files)


def remedy(name: str) -> str:
    """What to do about the damaged file `name` of a bundle."""
    return next((what for folder, what in REBUILT.items() if name.startswith(folder)), "export it again")


def read_files(root: Fields, folder: Path) -> tuple[dict[str, FileEntry], dict[str, str]]:
    """The entries of `files`: each exists inside the folder and has the size in the manifest; and `Bundle.damaged`."""
    group = root.group("files")
    if len(group.data) > MOST_FILES:
        raise root.error("files", f"has more than {MOST_FILES} files")
    files: dict[str, FileEntry] = {}
    damaged: dict[str, str] = {}
    real_folder = folder.resolve()
    for name in group.data:
        entry = group.group(name)
        size, sha256 = entry.whole("size"), entry.text("sha256")
        if not SHA256.fullmatch(sha256):
            raise entry.error("sha256", "must be 64 hexadecimal digits")
        path = inside(folder, name, group.where)
        files[name] = FileEntry(size, sha256)
        rebuilt = name.startswith(tuple(REBUILT))
        try:
            if not path.resolve(strict=True).is_relative_to(real_folder):
                raise KontextError(f"{path} is a symbolic link to outside the bundle")
            if not path.is_file():
                raise KontextError(f"{path} is not a file")
            actual = path.stat().st_size
        except FileNotFoundError:
            if rebuilt:
                damaged[name] = f"{path} is missing"
                continue
            raise KontextError(f"{path} is missing: the bundle is incomplete") from None
        except (OSError, RuntimeError) as error:  # RuntimeError: circular links, before Python 3.13
            raise KontextError(f"cannot read {path}: {error}") from None
        if actual != size:
            problem = f"{path} has {actual} bytes, the manifest says {size}"
            if not rebuilt:
                raise KontextError(f"{problem}: the bundle is damaged")
            damaged[name] = problem
    return files, damaged


def inside(folder: Path, name: str, where: str) -> Path:
    """`folder/name`. Raises KontextError unless `name` is a normalized relative path without "..", "\\" or ":"."""
    parts = PurePosixPath(name).parts
    plain = parts and not re.search(r"[\x00-\x1f\\:]", name) and not name.startswith("/")
    if not plain or ".." in parts or str(PurePosixPath(name)) != name:
        raise KontextError(f"{where}{name!r} is not a path inside the bundle")
    return folder / name


def listed(entry: Fields, name: str, folder: Path, files: Mapping[str, FileEntry]) -> Path:
    """The path in field `name`. Raises KontextError unless it is one of `files`."""
    value = entry.text(name)
    path = inside(folder, value, f"{entry.where}{name}: ")
    if value not in files:
        raise entry.error(name, f"is {value!r}, which is not among the bundle's files")
    return path
