"""The command line's part about NVIDIA Triton Inference Server: its flags and what they do."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...errors import KontextError
from .source_flags import whole_number


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("NVIDIA Triton Inference Server")
    group.add_argument(
        "--triton",
        type=Path,
        metavar="REPO",
        help="write a model repository of the bundle; MODEL may then be a bundle, and -o is left out",
    )
    group.add_argument(
        "--triton-backend",
        choices=["python", "onnxruntime"],
        default="python",
        help="who runs the graphs: the runtime in the server's Python backend, or the server's ONNX Runtime backend "
        "(default: python)",
    )
    group.add_argument(
        "--triton-batch",
        type=whole_number(1, 64),
        metavar="N",
        help="pictures to sample together at most (default: by the model's picture size)",
    )
    group.add_argument(
        "--triton-instances",
        type=whole_number(1, 64),
        default=1,
        metavar="N",
        help="pipelines on each GPU, or on the CPU (default: 1)",
    )
    group.add_argument(
        "--triton-filters",
        type=Path,
        metavar="FILE",
        help="Python with the content filters input_filter and output_filter",
    )


def check(options: argparse.Namespace) -> None:
    """An export takes long: what is in the way of the repository is said before. Raises KontextError."""
    from ..bundle.output_folder import check_output
    from ..server.repository import REPOSITORY, check_filters

    check_output(options.triton, REPOSITORY, options.force)
    if options.triton_filters is not None:
        check_filters(options.triton_filters)


def lay_out(bundle: Path, options: argparse.Namespace) -> None:
    """Writes a bundle as a model repository."""
    from ..server.repository import Settings, write_repository

    if (bundle / "model_index.json").exists() or bundle.is_file():
        raise KontextError(
            f"{bundle} is a checkpoint: --triton takes a bundle, or -o OUT as well to make one"
        )
    settings = Settings(
        options.triton_backend, options.triton_batch, options.triton_instances, options.triton_filters
    )
    write_repository(bundle, options.triton, settings, force=options.force)
    if not options.quiet:
        print(f"wrote {options.triton}; its README.md says how to start it")
