"""`kontext-batch --ray`: the same edits by workers of a Ray cluster, or of one that is started on this machine.

Each worker is an actor with a pipeline of its own. The driver hands out jobs and writes the results; Ray places the
actors, asks its autoscaler for machines, and restarts what dies.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

from ..errors import KontextError
from ..runtime.backends.options import AUTO, BackendOptions, OnnxRuntimeOptions
from ..runtime.cli import backend_options, open_pipeline
from ..runtime.server.decoding import Decoders
from .editing import WAITING, Result, edit_all
from .jobs import Job
from .loading import READERS, SECONDS, IsMade, Loaded, decode_job, loaded_ahead, read_file, read_job

LOCAL = "local"

IN_FLIGHT = 2
"""Chunks that a worker has: it begins the next while the last one's results travel."""

TRIES = 3
"""Deaths of its worker after which a job fails: it may be what kills them."""

CONNECT_SECONDS = 5

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How an HTTP/2 client begins, as gRPC's (RFC 9113, 3.4), with empty SETTINGS; a server answers with its own."""

GPU_DEVICES = ("cuda", "nv-rtx", "rtx", "tensorrt", "migraphx")


@dataclass(frozen=True)
class Share:
    """What one worker has of a machine."""

    cpus: int
    gpus: int


class Worker:
    """Runs in an actor's process: a pipeline, and processes that decode pictures."""

    def __init__(self, arguments: argparse.Namespace, share: Share) -> None:
        arguments.quiet = True
        self.most: int = arguments.batch_size
        backend = worker_backend(arguments, share)
        self.pipe = open_pipeline(arguments, backend, low_memory=arguments.low_memory)
        self.decoders = Decoders(READERS, SECONDS)

    def process(self) -> int:
        """Its process id, once it is ready."""
        return os.getpid()

    def edit(self, chunk: Sequence[Loaded]) -> list[Result]:
        """What becomes of jobs whose pictures this machine can read."""
        failed: list[Result] = []

        def decode(loaded: Loaded) -> Loaded:
            try:
                files = {path: read_file(path) for path in loaded.job.options.image}  # type: ignore[union-attr]
            except KontextError as error:
                return replace(loaded, error=f"{error} on {socket.gethostname()}")
            return decode_job(loaded, files, self.decoders)

        def decoded() -> Iterator[Loaded]:
            for loaded in loaded_ahead(decode, chunk, READERS):
                if loaded.error:
                    failed.append(Result(loaded.job, loaded.digest, error=loaded.error))
                else:
                    yield loaded

        return [*edit_all(self.pipe, decoded(), self.most), *failed]


def worker_backend(arguments: argparse.Namespace, share: Share) -> BackendOptions | str:
    """What runs the networks: what the flags say, with the worker's share of the cores."""
    options = backend_options(arguments)
    if share.gpus:
        return options
    if options == AUTO:
        arguments.device, options = "cpu", OnnxRuntimeOptions()
    threads = getattr(options, "threads", 0)  # PyTorch takes what Ray sets in OMP_NUM_THREADS
    return replace(options, threads=share.cpus) if threads is None else options  # type: ignore[type-var]


class RayEdits:
    """Edits with the workers of a cluster. A context, which ends them, and a local cluster with them."""

    def __init__(self, arguments: argparse.Namespace, model: str) -> None:
        """Raises KontextError if no Ray answers; ModuleNotFoundError if it is not installed."""
        self.arguments, self.model = arguments, model
        self.chunk = WAITING * arguments.batch_size
        self.ray = connected(arguments.ray)
        self.share = Share(arguments.cpus_per_worker or 1, self.gpus())
        self.count: int = arguments.workers or self.places()
        self.ahead = self.chunk * self.count

    def gpus(self) -> int:
        """Of a worker: one if the device is one, or if the cluster has any and the flags leave it open."""
        device = self.arguments.device or AUTO
        if device in GPU_DEVICES:
            return 1
        return int(device == AUTO and self.ray.cluster_resources().get("GPU", 0) >= 1)

    def places(self) -> int:
        """Workers that the cluster has room for now."""
        found = self.ray.cluster_resources()
        if self.share.gpus:
            return max(1, int(found.get("GPU", 0)))
        return max(1, int(found.get("CPU", 0)) // self.share.cpus)

    @cached_property
    def workers(self) -> list[Any]:
        """The actors, which Ray begins to start when they are first asked for."""
        actor = self.ray.remote(Worker).options(
            num_cpus=self.share.cpus, num_gpus=self.share.gpus, max_restarts=-1, max_task_retries=TRIES - 1
        )
        return [actor.remote(self.arguments, self.share) for _ in range(self.count)]

    def load(self, job: Job, is_made: IsMade) -> Loaded:
        return read_job(job, self.model, is_made)[0]  # a worker reads the pictures

    def edit(self, jobs: Iterator[Loaded]) -> Iterator[Result]:
        from ray.exceptions import RayActorError, RayTaskError

        again: deque[list[Loaded]] = deque()
        running: dict[Any, tuple[Any, list[Loaded]]] = {
            worker.process.remote(): (worker, []) for worker in self.workers for _ in range(IN_FLIGHT)
        }
        left = True
        # A worker that has no place yet, and may never have, is not waited for once all jobs are done.
        while left or again or any(chunk for _, chunk in running.values()):
            (done, *_), _ = self.ray.wait(list(running), num_returns=1)
            worker, chunk = running.pop(done)
            try:
                yield from self.ray.get(done) if chunk else ()
            except RayTaskError as error:  # of what `edit_all` does not take for one job's
                raise cause_of(error) from None
            except RayActorError as error:
                if not chunk:
                    reason = str(error).strip().rpartition("\n")[2].rpartition("KontextError: ")[2]
                    raise KontextError(f"a worker cannot start: {reason}") from None
                if len(chunk) == 1:
                    reason = f"its worker died {TRIES} times: it may need more memory than there is"
                    yield Result(chunk[0].job, chunk[0].digest, error=reason)
                else:
                    again.extend([each] for each in chunk)
            following = again.popleft() if again else list(islice(jobs, self.chunk))
            left = left and bool(following)
            if following:
                running[worker.edit.remote(following)] = worker, following

    def __enter__(self) -> RayEdits:
        return self

    def __exit__(self, *error: object) -> None:
        self.ray.shutdown()


def cause_of(error: Any) -> BaseException:
    """What a worker raised, as if it had been raised here."""
    cause = error.cause
    if isinstance(cause, KontextError):
        return KontextError(str(cause))
    return RuntimeError(f"a worker failed: {error}")


def connected(address: str) -> Any:
    """The module `ray`, connected to the cluster at `address`, or to one that is started here.

    Raises:
        KontextError: no Ray answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent
    import ray

    if address not in (LOCAL, AUTO):
        check_address(address)
    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise KontextError(f"no Ray answers at {address}: {' '.join(str(error).split())}") from None
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, before)  # Ray's ends the process without cleaning up
    return ray


def check_address(address: str) -> None:
    """Raises KontextError unless a gRPC server, as Ray's head is one, answers at HOST:PORT: Ray would try for minutes,
    and then end this process."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535 or "/" in host:
        raise KontextError(f"--ray takes local, auto or HOST:PORT, such as 10.0.0.1:6379, not {address}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connection:
            connection.settimeout(CONNECT_SECONDS)
            connection.sendall(PREFACE)
            head = connection.recv(9)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KontextError(f"no Ray answers at {address}: {reason}") from None
    if len(head) < 4 or head[3] != 4:
        raise KontextError(f"no Ray answers at {address}: something else does")
