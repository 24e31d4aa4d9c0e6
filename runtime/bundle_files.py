"""The files of a bundle: that each one of the manifest is there, is inside the folder and has its size, and digests.

`read_files` reads the manifest's `files`, `read_links` its `links` to files outside the folder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import KontextError
from ..safetensors_header import read_header
from .fields import Fields

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


@dataclass(frozen=True)
class LinkEntry:
    """A file outside the bundle that graphs take weights from; `header_sha256` is of its safetensors header."""

    path: Path
    size: int
    header_sha256: str


def file_digest(path: Path, advance: Callable[[int], object] | None = None) -> str:
    """The SHA-256 of a file, in hexadecimal; `advance` is called as in `Bundle.verify`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if advance is not None:
                advance(len(block))
    return digest.hexdigest()


def remedy(name: str) -> str:
    """What to do about the damaged file `name` of a bundle."""
    return next((what for folder, what in REBUILT.items() if name.startswith(folder)), "export it again")


def read_files(root: Fields, folder: Path) -> tuple[dict[str, FileEntry], dict[str, str]]:
    """The entries of `files`: each exists inside the folder and has the size in the manifest; and `Bundle.damaged`."""
    group = root.group("files")
    files: dict[str, FileEntry] = {}
    damaged: dict[str, str] = {}
    real_folder = folder.resolve()
    for name in group.data:
        entry = group.group(name)
        size, sha256 = entry.whole("size"), entry.text("sha256")
        if not re.fullmatch("[0-9a-f]{64}", sha256):
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


def read_links(root: Fields, folder: Path) -> dict[str, LinkEntry]:
    """The entries of `links`: each a safetensors file whose header is the one at the time of the export.

    A bundle from elsewhere can name any file, but a file with another header is refused.
    """
    if "links" not in root.data:
        return {}
    group, links = root.group("links"), {}
    for name in group.data:
        entry = group.group(name)
        inside(folder, name, group.where)
        link = LinkEntry(Path(entry.text("path")), entry.whole("size", least=8), entry.text("header_sha256"))
        if not link.path.is_absolute():
            raise entry.error("path", f"must be an absolute path, not {str(link.path)!r:.40}")
        try:
            if not link.path.is_file():
                raise KontextError(
                    f"{link.path} does not exist, and the bundle takes weights from it: export the bundle again"
                )
            size = link.path.stat().st_size
        except OSError as error:
            raise KontextError(f"cannot read {link.path}: {error.strerror}") from None
        if size != link.size or read_header(link.path).digest != link.header_sha256:
            raise KontextError(
                f"{link.path} is not the file that {folder} was exported over; export it again"
            )
        links[name] = link
    return links


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
