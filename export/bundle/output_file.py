"""The file OUT that an export writes: new, or an existing one with the same ending, replaced at once.

It is written in the folder OUT.partial, beside a journal, and renamed to OUT; then OUT.partial is removed. An export
that was killed between these two leaves a journal whose finished file is gone: `published_file` knows it. All of it
happens with OUT.partial.lock locked (`output_folder.locked_output`).
"""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import KontextError
from ...files import fsync
from .folder_kind import JOURNAL, Kind
from .journal import Journal
from .output_folder import partial_folder


def check_file_free(output: Path, suffix: str, force: bool) -> None:
    """Checks that the file `output` can be written: its name ends in `suffix`, and there is none, or with `force` one
    that is a regular file.

    Raises:
        KontextError: says what is in the way.
    """
    if output.name.lower() == suffix:
        raise KontextError(f"-o {output}: the file's name needs something before {suffix}")
    if output.suffix.lower() != suffix:
        raise KontextError(f"-o {output}: the file's name must end in {suffix}")
    if not os.path.lexists(output):
        return
    if not output.is_file():
        raise KontextError(f"{output} exists and is not a file")
    if not force:
        raise KontextError(f"{output} exists: give --force to replace it, or choose another name")


def published_file(output: Path, name: str, key: object, kind: Kind) -> Journal | None:
    """The journal of an OUT whose export was killed just after its rename; its OUT.partial is removed here.

    None if there is no such OUT, or it was exported with another `key`.
    """
    partial = partial_folder(output)
    if not output.is_file() or not (partial / JOURNAL).is_file() or (partial / name).exists():
        return None
    journal = Journal(partial, key, kind)
    if not journal.load() or name not in journal.files:
        return None
    if output.stat().st_size != journal.files[name]["size"]:
        return None
    journal.discard()
    return journal


def publish_file(partial: Path, name: str, output: Path, kind: Kind) -> None:
    """Renames OUT.partial/`name` to OUT, over a file that is there, and removes OUT.partial."""
    fsync(partial)
    os.replace(partial / name, output)
    fsync(output.parent)
    kind.remove(partial)
