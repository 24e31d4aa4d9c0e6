"""What is added to a finished bundle: compiled engines and kernels, one process at a time.

The manifest is rewritten last, so that a bundle is whole at every moment: files that it does not list are what a killed
process left, and are removed by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ...bundle_folder import MANIFEST_NAME
from ...errors import KontextError
from ...files import fsync, remove_temporaries, write_atomic
from ...locks import locked_folder
from ...runtime.bundle import Bundle
from ...runtime.bundle_files import file_digest
from ...runtime.digest import digest_of
from ...runtime.links import is_own, remember_own
from .folder_kind import BUNDLE, files_in
from .manifest import manifest_bytes


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A context in which no other process adds to a bundle.

    Raises:
        KontextError: another one does, or the folder cannot be written.
    """
    busy = f"another process is using {folder}: it adds engines or kernels to the bundle, or replaces it"
    try:
        with locked_folder(folder, busy):
            yield
    except OSError as fault:
        if fault.filename is None and fault.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise KontextError(f"cannot write {fault.filename or folder}: {fault.strerror}") from None


def is_sound(bundle: Bundle, name: str) -> bool:
    """Whether a file is the bundle's, and its SHA-256 the manifest's."""
    if name not in bundle.files or name in bundle.damaged:
        return False
    return file_digest(bundle.folder / name) == bundle.files[name].sha256


def record(
    bundle: Bundle,
    change: Callable[[dict[str, Any]], object],
    added: Iterable[str] = (),
    removed: Iterable[str] = (),
) -> Bundle:
    """Changes the manifest, then deletes what it lists no more; returns the new bundle.

    Args:
        bundle: to change, which is `locked`.
        change: changes the manifest's other entries in place, after its `files`.
        added: files that are in the folder, to be listed with their sizes and digests.
        removed: engines and kernels to be deleted, but for those in `added`; a manifest that gives these names to
            other files does not get them deleted.
    """
    folder, added = bundle.folder, list(added)
    gone = [name for name in removed if name not in added and BUNDLE.unlisted.fullmatch(name)]
    manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    for name in gone:
        manifest["files"].pop(name, None)
    for name in added:
        path = folder / name
        manifest["files"][name] = {"size": path.stat().st_size, "sha256": file_digest(path)}
    change(manifest)
    text = manifest_bytes(manifest)
    if bundle.links and is_own(bundle.digest):
        remember_own(digest_of(text))
    for inner in {path for name in added for path in (folder / name).parents if path.is_relative_to(folder)}:
        fsync(inner)  # a power cut must not leave a manifest that lists what is not there
    write_atomic(folder / MANIFEST_NAME, text)
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    return Bundle.open(folder, allow_links=bundle.allow_links)


def remove_unfinished(bundle: Bundle) -> None:
    """Removes what a killed build left: temporary files, engines and kernels that are not in the manifest."""
    remove_temporaries(bundle.folder)
    for name in files_in(bundle.folder):
        if name not in bundle.files and BUNDLE.unlisted.fullmatch(name):
            (bundle.folder / name).unlink()
