"""Files outside a bundle that its graphs take weights from, and which bundles may name any.

A bundle from elsewhere can name every file of this machine. So links hold for bundles that this user exported, which
leave their digest in the user's state folder, and for those that the user allows. They are looked at when weights are
taken from them: opening a bundle touches nothing outside it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import KontextError
from ..safetensors_header import read_header
from .bundle_files import SHA256, file_digest, inside
from .cache import user_folder
from .digest import PREFIX
from .fields import Fields


@dataclass(frozen=True)
class LinkEntry:
    """A safetensors file outside the bundle; `header_sha256` is of its header, `sha256` of the whole file, "" in
    bundles from before that was recorded."""

    path: Path
    size: int
    header_sha256: str
    sha256: str


def read_links(root: Fields, folder: Path) -> dict[str, LinkEntry]:
    """The entries of `links`, by their names in the graphs."""
    if "links" not in root.data:
        return {}
    group, links = root.group("links"), {}
    for name in group.data:
        entry = group.group(name)
        inside(folder, name, group.where)
        path, size = Path(entry.text("path")), entry.whole("size", least=8)
        if not path.is_absolute():
            raise entry.error("path", f"must be an absolute path, not {str(path)!r:.40}")
        digests = [entry.text("header_sha256"), entry.text("sha256") if "sha256" in entry.data else ""]
        if not all(digest == "" or SHA256.fullmatch(digest) for digest in digests):
            raise entry.error("sha256", "must be 64 hexadecimal digits")
        links[name] = LinkEntry(path, size, *digests)
    return links


def check_links(links: Mapping[str, LinkEntry], folder: Path) -> None:
    """Raises KontextError unless each file is a safetensors file of the recorded size and header."""
    for link in links.values():
        try:
            if not link.path.is_file():
                what = "is not a regular file" if link.path.exists() else "does not exist"
                raise KontextError(
                    f"{link.path} {what}, and the bundle takes weights from it: export the bundle again"
                )
            size = link.path.stat().st_size
        except OSError as error:
            raise KontextError(f"cannot read {link.path}: {error.strerror}") from None
        if size != link.size or read_header(link.path).digest != link.header_sha256:
            raise KontextError(
                f"{link.path} is not the file that {folder} was exported over; export it again"
            )


def verify_links(
    links: Mapping[str, LinkEntry], folder: Path, advance: Callable[[int], object] | None = None
) -> None:
    """`check_links`, and the SHA-256 of each whole file; `advance` as in `Bundle.verify`."""
    check_links(links, folder)
    for link in links.values():
        if not link.sha256:
            raise KontextError(
                f"{folder} does not have the SHA-256 of {link.path}, from which it takes weights: it was made before "
                "whole files were recorded, export it again"
            )
        if file_digest(link.path, advance) != link.sha256:
            raise KontextError(
                f"{link.path} has changed since {folder} was exported over it; export it again"
            )


def refuse_foreign(links: Mapping[str, LinkEntry], digest: str, folder: Path) -> None:
    """Raises KontextError if a bundle has links and this user has not exported it."""
    if links and not is_own(digest):
        first = next(iter(links.values()))
        raise KontextError(
            f"{folder} takes weights from {first.path}, and you have not exported it on this machine: allow it with "
            "--allow-links (allow_links=True) if you know where it comes from, or export it again"
        )


def own_folder() -> Path:
    """Holds a file for each bundle with links that this user has exported, named by its digest."""
    return user_folder("XDG_STATE_HOME", ".local/state") / "linked-bundles"


def is_own(digest: str) -> bool:
    """Whether this user has exported the bundle with this digest."""
    return (own_folder() / digest.removeprefix(PREFIX)).is_file()


def remember_own(digest: str) -> None:
    """Records that this user has exported the bundle with this digest; warns if that cannot be recorded."""
    folder = own_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / digest.removeprefix(PREFIX)).touch()
    except OSError as error:
        warnings.warn(
            f"{folder} cannot be written ({error.strerror}): opening the bundle will need --allow-links",
            stacklevel=2,
        )
