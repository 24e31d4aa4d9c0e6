"""`kontext-batch BUNDLE JOBS -o OUT`: edits by the thousand from a list of jobs, with one loaded bundle."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command import Parser, local_path, run_command
from ..errors import KontextError
from ..runtime.cli import (
    add_backend_flags,
    add_edit_flags,
    add_metadata_flag,
    backend_options,
    open_pipeline,
    shows_progress,
)
from .jobs import Job, columns, make_jobs
from .journal import RESULTS
from .rows import read_rows

if TYPE_CHECKING:
    from ..runtime.backends.options import BackendOptions
    from .ray_cluster import RayEdits
    from .run import LocalEdits

GOES_ON = "; the same command goes on where it stopped"


def parser() -> Parser:
    result = Parser(
        prog="kontext-batch",
        description="Makes the edits of a list of jobs. Started again, it goes on with those that are left.",
        epilog="A row has the columns prompt and image, and may have id, output (names of the result) and the flags of "
        "an edit below, without dashes: they hold for rows without their own. docs/batch.md has examples.",
    )
    result.add_argument(
        "bundle", type=local_path, metavar="BUNDLE", help="a folder that kontext-export wrote"
    )
    result.add_argument(
        "jobs",
        type=local_path,
        metavar="JOBS",
        help="a list of jobs (.jsonl, .csv, .tsv or .parquet), or a folder of pictures to edit by one --prompt",
    )
    result.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help=f"the folder for the pictures and {RESULTS}, a line for each job; made if it does not exist",
    )
    result.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="pictures to sample together, of jobs with the same options and sizes of pictures (default: 1)",
    )
    result.add_argument(
        "--retry-failed", action="store_true", help="also run the jobs again that have failed"
    )
    result.add_argument(
        "--low-memory",
        action="store_true",
        help="load each network anew for every edit and drop it after its part, for bundles that do not fit as a whole",
    )
    result.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="let workers of a Ray cluster edit: local starts one here, auto finds one, HOST:PORT names its head; the "
        "bundle and the pictures must be at the same paths on all its machines",
    )
    result.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="with --ray: workers, each with a GPU or --cpus-per-worker (default: as many as there is room for)",
    )
    result.add_argument(
        "--cpus-per-worker",
        type=int,
        metavar="N",
        help="with --ray: processor cores of a worker (default: 1)",
    )
    result.add_argument("-p", "--prompt", help="the instruction of rows without their own")
    add_edit_flags(result)
    add_backend_flags(result)
    add_metadata_flag(result)
    result.add_argument("--quiet", action="store_true", help="no progress bar, no summary")
    return result


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; 1 if jobs have failed."""
    if arguments.batch_size < 1:
        raise KontextError(f"--batch-size must be 1 or more, not {arguments.batch_size}")
    for name in ("workers", "cpus_per_worker"):
        flag, value = f"--{name.replace('_', '-')}", getattr(arguments, name)
        if value is not None and arguments.ray is None:
            raise KontextError(f"{flag} needs --ray")
        if value is not None and value < 1:
            raise KontextError(f"{flag} must be 1 or more, not {value}")
    backend = backend_options(arguments)
    jobs = read_jobs(arguments)
    from .run import Progress, run_jobs

    progress = Progress(len(jobs), show=shows_progress(arguments))
    with opened_edits(arguments, backend) as edits:
        run_jobs(
            edits,
            jobs,
            arguments.output,
            progress,
            retry=arguments.retry_failed,
            metadata=arguments.metadata,
        )
    progress.report(arguments.output, quiet=arguments.quiet)
    return 1 if progress.failed else 0


def opened_edits(arguments: argparse.Namespace, backend: BackendOptions | str) -> LocalEdits | RayEdits:
    """What runs the edits: a pipeline here, or workers of Ray."""
    if arguments.ray is None:
        from .run import LocalEdits

        pipe = open_pipeline(arguments, backend, low_memory=arguments.low_memory)
        return LocalEdits(pipe, arguments.batch_size)
    from ..lora_flag import parse_lora_flag
    from ..runtime.bundle import Bundle
    from ..runtime.lora import open_loras
    from .ray_cluster import RayEdits
    from .run import model_of

    arguments.bundle = arguments.bundle.absolute()  # workers have working directories of their own
    bundle = Bundle.open(arguments.bundle, digest=arguments.require_digest, allow_links=arguments.allow_links)
    loras = [(path.absolute(), weight) for path, weight in map(parse_lora_flag, arguments.lora)]
    arguments.lora = [f"{path}:{weight!r}" for path, weight in loras]
    return RayEdits(arguments, model_of(bundle, open_loras(bundle, loras)))


def read_jobs(arguments: argparse.Namespace) -> list[Job]:
    """The jobs of `arguments.jobs`. Raises KontextError if there are none, or it cannot be read."""
    path: Path = arguments.jobs
    if path.is_dir():
        if arguments.prompt is None:
            raise KontextError(f"{path} is a folder of pictures: say by --prompt what to do with them")
        if arguments.output.exists() and os.path.samefile(path, arguments.output):
            raise KontextError(f"{path} holds the pictures to edit: name another folder for the results")
    path = path.absolute()
    defaults = {name: absolute(getattr(arguments, name)) for name in columns() if name in vars(arguments)}
    del defaults["output"]
    return make_jobs(read_rows(path, columns()), path if path.is_dir() else path.parent, defaults)


def absolute(value: Any) -> Any:
    return value.absolute() if isinstance(value, Path) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code, see `run_command`; 1 if jobs have failed."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: run(parser().parse_args(words)), after_interrupt=lambda: GOES_ON)


if __name__ == "__main__":
    sys.exit(main())
