"""Pictures of jobs, read and decoded ahead of the edits: files in threads, decoders in processes of their own.

Python's list of warnings belongs to the whole process, so nothing here may warn: decoders answer with what they have
to say.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from PIL import Image

from ..errors import KontextError
from ..regular_files import read_regular
from ..runtime.cli import reduces
from ..runtime.images import FORMATS
from ..runtime.picture_limits import MAX_BYTES, MAX_PIXELS
from ..runtime.server.decoding import Decoders
from .jobs import Job, files_of, job_digest

READERS = 2
"""Jobs whose pictures are read and decoded at a time."""

SECONDS = 120
"""Of a processor's time for one picture, which nobody waits for; the server allows 10."""


@dataclass(frozen=True)
class Loaded:
    """A job with its pictures, or the reason why there are none."""

    job: Job
    digest: str
    pictures: tuple[Image.Image, ...] = ()
    """References, upright and in RGB."""
    warnings: tuple[str, ...] = ()
    error: str = ""
    made: bool = False
    """An earlier run has edited it, or failed to."""


Given = TypeVar("Given")

IsMade = Callable[[str], bool]
"""Says by a job's digest whether an earlier run has edited it, or failed to."""


def read_job(job: Job, model: str, is_made: IsMade) -> tuple[Loaded, dict[Path, bytes] | None]:
    """A job without its pictures, and the files that they are in; no files if there is nothing to edit.

    Args:
        job: to read the files of.
        model: what edits it, as `job_digest` takes it.
        is_made: tells which jobs are made.
    """
    files: dict[Path, bytes] = {}
    digests: dict[Path, str] = {}
    error = job.fault
    for path in dict.fromkeys([] if job.options is None else files_of(job.options)):
        try:
            files[path] = read_file(path)
            digests[path] = hashlib.sha256(files[path]).hexdigest()
        except KontextError as fault:
            digests[path], error = "", error or str(fault)
    digest = job_digest(job, model, digests)
    loaded = Loaded(job, digest, error=error, made=is_made(digest))
    return loaded, None if error or loaded.made else files


def decode_job(loaded: Loaded, files: Mapping[Path, bytes], decoders: Decoders) -> Loaded:
    """The job with its pictures, or the reason why there are none."""
    options = loaded.job.options
    assert options is not None
    try:
        decoded = [
            decoders.decode(files[path], str(path), FORMATS, MAX_PIXELS, reduces(options))
            for path in options.image
        ]
    except KontextError as error:
        return replace(loaded, error=str(error))
    notes = dict.fromkeys(note for each in decoded for note in each.warnings)
    return replace(loaded, pictures=tuple(each.picture for each in decoded), warnings=tuple(notes))


def read_file(path: Path) -> bytes:
    """A picture's file. Raises KontextError."""
    try:
        return read_regular(path, MAX_BYTES, "a picture")
    except FileNotFoundError:
        raise KontextError(f"{path} does not exist") from None
    except OSError as error:
        raise KontextError(f"{path} cannot be read as a picture: {error.strerror or error}") from None


def loaded_ahead(load: Callable[[Given], Loaded], jobs: Iterable[Given], ahead: int) -> Iterator[Loaded]:
    """The jobs in order, with the next `ahead` ones loaded, or being loaded, meanwhile."""
    waiting: deque[Future[Loaded]] = deque()
    pool = ThreadPoolExecutor(READERS)
    try:
        for job in jobs:
            waiting.append(pool.submit(load, job))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
