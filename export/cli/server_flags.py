"""The flags about NVIDIA Triton Inference Server, and the model repository that they ask for."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from ...errors import one_line
from ...runtime.server.contract import Limits, read_limit
from .dependent_flags import refuse_without
from .source_flags import whole_number


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("NVIDIA Triton Inference Server")
    group.add_argument(
        "--triton",
        type=Path,
        metavar="REPO",
        help="write the bundle as a model repository; without -o, MODEL is an existing bundle",
    )
    group.add_argument(
        "--triton-backend",
        choices=["python", "onnxruntime"],
        help="what runs the graphs: the runtime in the server's Python backend, or the server's ONNX Runtime backend "
        "(default: python)",
    )
    group.add_argument(
        "--triton-batch",
        type=whole_number(1, 64),
        metavar="N",
        help="largest number of pictures to sample together (default: by the model's picture size)",
    )
    group.add_argument(
        "--triton-instances",
        type=whole_number(1, 64),
        metavar="N",
        help="pipelines on each GPU, or on the CPU (default: 1)",
    )
    group.add_argument(
        "--triton-limit",
        type=partial(read_limit, flag="--triton-limit"),
        action="append",
        metavar="NAME=N",
        help="what one request may ask for, such as max_steps=50; repeatable; docs/serving.md lists the names",
    )
    group.add_argument(
        "--triton-filters",
        type=Path,
        metavar="FILE",
        help="Python file with the content filters input_filter and output_filter",
    )


def check_server_flags(options: argparse.Namespace) -> None:
    """Checks before a long export that the repository can be written. Raises KontextError."""
    if options.triton is None:
        refuse_without(
            "--triton",
            options,
            ("triton_backend", "triton_batch", "triton_instances", "triton_limit", "triton_filters"),
        )
        return
    from ..bundle.output_folder import check_output
    from ..server.repository import REPOSITORY, check_filters

    check_output(options.triton, REPOSITORY, options.force)
    if options.triton_filters is not None:
        check_filters(options.triton_filters)


def write_requested_repository(bundle: Path, options: argparse.Namespace) -> None:
    """Writes a bundle as a model repository."""
    from ..server.repository import Settings, write_repository

    settings = Settings(
        options.triton_backend or "python",
        options.triton_batch,
        options.triton_instances or 1,
        options.triton_filters,
        Limits(**dict(options.triton_limit or ())),
    )
    write_repository(bundle, options.triton, settings, force=options.force)
    if not options.quiet:
        print(one_line(f"wrote {options.triton}; its README.md says how to start it"))
