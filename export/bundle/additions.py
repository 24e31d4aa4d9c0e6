"""What is added to a finished bundle: compiled engines and kernels, one process at a time.

The manifest is rewritten last, so that a bundle is whole at every moment: files that it does not list are what a killed
process left, and are removed by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ...bundle_folder import MANIFEST_NAME
from ...errors import KontextError
from ...files import remove_temporaries, write_atomic
from ...runtime.bundle import Bundle
from ...runtime.bundle_files import file_digest
from .manifest import manifest_bytes


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A context in which no other process adds to a bundle.

    Raises:
        KontextError: another one does, or the folder cannot be written.
    """
    if not folder.is_dir():
        raise KontextError(f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise KontextError(
                f"another build is running in {folder}: it adds engines or kernels to the bundle"
            ) from None
        yield
    except OSError as fault:
        if fault.filename is None and fault.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise KontextError(f"cannot write {fault.filename or folder}: {fault.strerror}") from None
    finally:
        os.close(descriptor)


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
        removed: files to be deleted, but for those in `added`.
    """
    folder, added = bundle.folder, list(added)
    gone = [name for name in removed if name not in added]
    manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    for name in gone:
        manifest["files"].pop(name, None)
    for name in added:
        path = folder / name
        manifest["files"][name] = {"size": path.stat().st_size, "sha256": file_digest(path)}
    change(manifest)
    write_atomic(folder / MANIFEST_NAME, manifest_bytes(manifest))
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    return Bundle.open(folder)


def remove_unfinished(bundle: Bundle, pattern: str) -> None:
    """Removes what a killed build left: temporary files, and files of a glob pattern that are not in the manifest."""
    remove_temporaries(bundle.folder)
    for path in bundle.folder.glob(pattern):
        if path.relative_to(bundle.folder).as_posix() not in bundle.files:
            path.unlink()
