"""Pictures of jobs, read and decoded ahead of the edits: files in threads, decoders in processes of their own.

Python's list of warnings belongs to the whole process, so nothing here may warn: decoders answer with what they have
to say.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

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


@dataclass
class Loader:
    """Loads jobs with `decoders`; `is_made` says by key and digest which ones need no pictures."""

    model: str
    """What edits them, as `job_digest` takes it."""
    decoders: Decoders
    is_made: Callable[[Job, str], bool]

    def load(self, job: Job) -> Loaded:
        if job.options is None:
            digest = job_digest(job, self.model, {})
            return Loaded(job, digest, error=job.fault, made=self.is_made(job, digest))
        files: dict[Path, bytes] = {}
        digests: dict[Path, str] = {}
        error = ""
        for path in dict.fromkeys(files_of(job.options)):
            try:
                files[path] = read_file(path)
                digests[path] = hashlib.sha256(files[path]).hexdigest()
            except KontextError as fault:
                digests[path], error = "", error or str(fault)
        digest = job_digest(job, self.model, digests)
        made = self.is_made(job, digest)
        if error or made:
            return Loaded(job, digest, error=error, made=made)
        return self.decode(job, digest, files)

    def decode(self, job: Job, digest: str, files: Mapping[Path, bytes]) -> Loaded:
        assert job.options is not None
        try:
            decoded = [
                self.decoders.decode(files[path], str(path), FORMATS, MAX_PIXELS, reduces(job.options))
                for path in job.options.image
            ]
        except KontextError as error:
            return Loaded(job, digest, error=str(error))
        notes = dict.fromkeys(note for each in decoded for note in each.warnings)
        return Loaded(job, digest, tuple(each.picture for each in decoded), tuple(notes))


def read_file(path: Path) -> bytes:
    """A picture's file. Raises KontextError."""
    try:
        return read_regular(path, MAX_BYTES, "a picture")
    except FileNotFoundError:
        raise KontextError(f"{path} does not exist") from None
    except OSError as error:
        raise KontextError(f"{path} cannot be read as a picture: {error.strerror or error}") from None


def loaded_ahead(load: Callable[[Job], Loaded], jobs: Iterable[Job], ahead: int) -> Iterator[Loaded]:
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
