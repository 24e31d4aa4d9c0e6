"""`kontext-edit BUNDLE -i in.png --prompt "…" -o out.png`: one edit from the command line.

With `--server URL` instead of BUNDLE an inference server runs it.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command import Parser, local_path, run_command
from ..errors import KontextError
from . import units
from .backends.options import (
    AUTO,
    BACKENDS,
    DEVICES,
    BackendOptions,
    OnnxRuntimeOptions,
    OpenVINOOptions,
    TensorRTOptions,
    TorchOptions,
)
from .backends.select import find_options
from .reference_options import REFERENCE_METHODS, parse_rule, parse_size, usual_sizes
from .repaint_flags import add_repaint_flags, repaint_arguments, sent_arguments

if TYPE_CHECKING:
    from PIL import Image

    from .bundle import Bundle
    from .pipeline import Pipeline


MAX_IMAGES = 1000
"""Pictures of one command; they are all in memory before the first is written."""


@dataclass(frozen=True)
class OptionFlag:
    """The flag of one field of the options of one or several backends."""

    records: tuple[
        type[OnnxRuntimeOptions] | type[TorchOptions] | type[TensorRTOptions] | type[OpenVINOOptions], ...
    ]
    field: str
    help: str
    type: Callable[[str], Any] | None = None
    """None for a flag without a value."""
    metavar: str | None = None

    @property
    def flag(self) -> str:
        return "--" + self.field.replace("_", "-")

    @property
    def selected_by(self) -> str:
        return " or ".join(record.selected_by for record in self.records)

    def add_to(self, parser: Parser) -> None:
        value: dict[str, Any] = {"type": self.type, "metavar": self.metavar}
        if self.type is None:
            value = {"action": "store_const", "const": True}
        parser.add_argument(self.flag, help=f"with {self.selected_by}: {self.help}", **value)


OPTION_FLAGS = (
    OptionFlag(
        (OnnxRuntimeOptions,),
        "provider",
        "a plug-in provider: its library or its wheel's Python module, with options of its own",
        str,
        "LIBRARY[:key=value,…]",
    ),
    OptionFlag(
        (TorchOptions,), "offload", "keep the transformer in host memory, for GPUs that it does not fit"
    ),
    OptionFlag((TorchOptions,), "compile", "let torch.compile generate the code of the transformer's blocks"),
    OptionFlag(
        (TorchOptions,),
        "cache",
        "an approximation: skip all blocks but the first at steps where that one's effect changed by no more than "
        "SHARE, such as 0.1",
        float,
        "SHARE",
    ),
    OptionFlag(
        (TorchOptions,),
        "reuse_reference",
        "an approximation: compute the references' part of the network every N steps only",
        int,
        "N",
    ),
    OptionFlag(
        (TensorRTOptions,),
        "weight_budget",
        "GPU memory for an engine's weights, such as 8GB; the rest is streamed from host memory in every run (default: "
        "as much as fits)",
        partial(units.parse_bytes, flag="--weight-budget"),
        "SIZE",
    ),
    OptionFlag(
        (TorchOptions, OpenVINOOptions),
        "compute",
        "what the networks compute in: fp32, bf16 or fp16 (default: what the bundle says)",
        str,
        "DTYPE",
    ),
)


def parser() -> Parser:
    result = Parser(
        prog="kontext-edit",
        description="Edits a picture with a bundle, here or on a server. `kontext-edit devices [BUNDLE]` lists what "
        "there is to run it on.",
    )
    result.add_argument(
        "bundle",
        type=partial(local_path, advice="name a server by --server URL"),
        nargs="?",
        metavar="BUNDLE",
        help="a folder that kontext-export wrote",
    )
    result.add_argument(
        "--server",
        metavar="URL",
        help="instead of BUNDLE: an inference server, such as http://HOST:8000 or grpc://HOST:8001",
    )
    result.add_argument(
        "-i",
        "--image",
        type=local_path,
        action="append",
        default=[],
        metavar="FILE",
        help="a reference picture; repeat it for several, leave it out to draw from the prompt alone",
    )
    result.add_argument("-p", "--prompt", required=True, help="the instruction")
    result.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="the picture to write, replaced if it exists",
    )
    add_edit_flags(result)
    result.add_argument(
        "--num-images",
        type=int,
        default=1,
        metavar="N",
        help="pictures to make, with consecutive seeds, as FILE-0, FILE-1, …",
    )
    add_backend_flags(result)
    add_metadata_flag(result)
    result.add_argument("--quiet", action="store_true", help="no progress bar, no messages")
    return result


def add_metadata_flag(parser: Parser) -> None:
    parser.add_argument(
        "--no-metadata",
        dest="metadata",
        action="store_false",
        help="write no prompt, seed and other settings into the picture's file",
    )


def add_edit_flags(parser: Parser) -> None:
    """Adds the flags that say what edit to make, but for its references and its prompt. `kontext-batch` takes each of
    them for all rows and as a row's own."""
    parser.add_argument("--steps", type=int, help="sampler steps (default: the bundle's)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the bundle's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument(
        "--size",
        type=parse_width_height,
        metavar="WxH",
        help="output size in pixels (default: the reference's aspect, at a size the model prefers)",
    )
    parser.add_argument(
        "--reference-method",
        choices=REFERENCE_METHODS,
        help="how several references are placed: one after the other by index, beside each other by offset, or as one "
        "picture (default: the bundle's)",
    )
    parser.add_argument(
        "--reference-size",
        type=reference_size,
        default="auto",
        metavar="RULE",
        help="what references are encoded at: output (the output's size), preferred (the model's size nearest to the "
        "picture's aspect), WxH, or auto: output where --size has the picture's aspect, else preferred (default: auto)",
    )
    add_repaint_flags(parser)


def edit_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags of `add_edit_flags` say, as arguments of `Pipeline.edit`; reads the pictures that they name."""
    return {
        "steps": arguments.steps,
        "guidance": arguments.guidance,
        "seed": arguments.seed,
        "size": arguments.size,
        "reference_method": arguments.reference_method,
        "reference_size": arguments.reference_size,
        **repaint_arguments(arguments, reduce=reduces(arguments)),
    }


def reduces(arguments: argparse.Namespace) -> bool:
    """Whether large pictures of an edit with these flags may be decoded smaller, as by `open_picture`."""
    return arguments.size is None and usual_sizes(arguments.reference_size, arguments.reference_method)


def add_backend_flags(parser: Parser) -> None:
    """Adds the flags about what runs a bundle, with which LoRAs, and which bundles are run."""
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="a LoRA that `kontext-export lora` has made ready, for bundles exported with --lora-slots; repeatable",
    )
    parser.add_argument("--device", choices=DEVICES, help="where to run (default: auto)")
    parser.add_argument(
        "--backend",
        choices=(AUTO, *BACKENDS),
        help="what runs the networks; torch needs PyTorch, openvino OpenVINO (default: auto)",
    )
    for each in OPTION_FLAGS:
        each.add_to(parser)
    parser.add_argument(
        "--verify", action="store_true", help="compare the bundle's files with their SHA-256 first"
    )
    parser.add_argument(
        "--require-digest",
        metavar="sha256:…",
        help="refuse a bundle with another digest (kontext-export digest BUNDLE prints it), and compare the files that "
        "are used with their SHA-256",
    )
    parser.add_argument(
        "--allow-links",
        action="store_true",
        help="take weights from files outside the bundle that it names, although you have not exported it here",
    )


def parse_width_height(text: str) -> tuple[int, int]:
    """(width, height) of "1024x768". Raises KontextError that names --size."""
    size = parse_size(text)
    if size is None:
        raise KontextError(f"--size takes WIDTHxHEIGHT, such as 1024x768, not {text!r}")
    return size


def reference_size(text: str) -> str:
    """`text` if it says what references are encoded at."""
    parse_rule(text)
    return text


def output_paths(path: Path, count: int) -> list[Path]:
    """out.png; out-0.png, out-1.png, … for several pictures."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{index}{path.suffix}") for index in range(count)]


def run(arguments: argparse.Namespace) -> None:
    # Errors that need no model are found before one is loaded.
    for name, value in (("steps", arguments.steps), ("num-images", arguments.num_images)):
        if value is not None and value < 1:
            raise KontextError(f"--{name} must be 1 or more, not {value}")
    if arguments.num_images > MAX_IMAGES:
        raise KontextError(f"--num-images may be at most {MAX_IMAGES}, not {arguments.num_images}")
    if (arguments.bundle is None) == (arguments.server is None):
        raise KontextError("name either a BUNDLE or a --server (kontext-edit --help shows the flags)")
    from .images import check_writable, save_picture

    paths = output_paths(arguments.output, arguments.num_images)
    for path in paths:
        check_writable(path)
    try:
        if arguments.server is None:
            pictures, notes = edit_locally(arguments)
        else:
            pictures, notes = edit_on_server(arguments), []
    except MemoryError:
        raise KontextError("not enough memory: try a smaller --size, or fewer --num-images") from None
    for picture, path in zip(pictures, paths, strict=True):
        save_picture(picture, path, metadata=arguments.metadata)
        notes.append(f"wrote {path} ({picture.width}x{picture.height})")
    if not arguments.quiet:
        print("\n".join(notes))


def backend_options(arguments: argparse.Namespace) -> BackendOptions | str:
    """The options of the backend that the flags select; "auto" if they select nothing. Raises KontextError for a flag
    of another backend."""
    device = arguments.device or AUTO
    chosen = [arguments.backend or AUTO, device, *(getattr(arguments, each.field) for each in OPTION_FLAGS)]
    if set(chosen) <= {AUTO, None}:
        return AUTO
    record = type(find_options(arguments.backend or AUTO, device))
    fields = {}
    for each in OPTION_FLAGS:
        value = getattr(arguments, each.field)
        if value is not None:
            if record not in each.records:
                raise KontextError(f"{each.flag} needs {each.selected_by}")
            fields[each.field] = value
    return record(**fields)


def shows_progress(arguments: argparse.Namespace) -> bool:
    return sys.stderr.isatty() and not arguments.quiet


def edit_locally(arguments: argparse.Namespace) -> tuple[list[Image.Image], list[str]]:
    """The pictures, made from the bundle at `arguments.bundle`, and what is to be said about them."""
    from .images import open_picture

    backend = backend_options(arguments)  # a flag that is wrong is found before pictures are read
    images = [open_picture(path, reduce=reduces(arguments)) for path in arguments.image]
    edit = edit_arguments(arguments)
    # A single edit uses each network in one part only: keeping it, or what it made, would only cost memory.
    pipe = open_pipeline(arguments, backend, low_memory=True, embedding_cache=0)
    announced = shows_progress(arguments)
    if pipe.choice is not None and announced:
        print(pipe.choice)
    pictures = pipe.edit(
        [images],
        [arguments.prompt],
        num_images=arguments.num_images,
        progress=shows_progress(arguments),
        **edit,
    )
    approximated = getattr(pipe.backend, "approximated", "")  # the torch backend has it
    notes = [str(pipe.choice)] if pipe.choice is not None and not announced else []
    if approximated:
        notes.append(f"approximated: {approximated}")
    return pictures, notes


def open_pipeline(arguments: argparse.Namespace, backend: BackendOptions | str, **options: Any) -> Pipeline:
    """A pipeline with the bundle and the flags of `add_backend_flags`; `options` are others of `Pipeline.load`."""
    from .bundle import Bundle
    from .lora import parse_lora
    from .pipeline import Pipeline

    device, pinned = arguments.device or AUTO, arguments.require_digest
    bundle = Bundle.open(arguments.bundle, digest=pinned, allow_links=arguments.allow_links)
    if not isinstance(backend, str):
        backend.check(device, bundle)
    if arguments.verify or pinned is not None:
        verify(bundle, shows_progress(arguments), compiled=arguments.verify)
    pipeline = Pipeline.load(bundle, device=device, backend=backend, **options)
    pipeline.load_loras([parse_lora(text) for text in arguments.lora])
    return pipeline


def edit_on_server(arguments: argparse.Namespace) -> list[Image.Image]:
    """The pictures, made by the server at `arguments.server`."""
    refuse_local_flags(arguments, "--server")
    from tqdm import tqdm

    from .sent_pictures import picture_file
    from .server_client import Edit, connect, edit_all

    images = [picture_file(path) for path in arguments.image]
    repaint = sent_arguments(arguments)
    edits = [
        Edit(
            arguments.prompt,
            images,
            arguments.steps,
            arguments.guidance,
            arguments.seed + index,
            arguments.size,
            arguments.reference_method,
            None if arguments.reference_size == "auto" else arguments.reference_size,
            **repaint,
        )
        for index in range(arguments.num_images)
    ]
    client = connect(arguments.server)
    with tqdm(unit="step", disable=not shows_progress(arguments)) as bar:

        def on_step(total: int) -> None:
            bar.total = total * len(edits)
            bar.update()

        answers = edit_all(client, edits, on_step)
    for text in dict.fromkeys(text for answer in answers for text in answer.warnings):
        warnings.warn(text, stacklevel=2)
    return [answer.picture for answer in answers]


def refuse_local_flags(arguments: argparse.Namespace, server: str, *more: tuple[str, object]) -> None:
    """Raises KontextError if a flag of `add_backend_flags`, or one of `more` with its value, is given beside the flag
    `server`: what runs there was decided there."""
    local = [
        *more,
        ("--lora", arguments.lora or None),
        ("--device", arguments.device),
        ("--backend", arguments.backend),
        ("--verify", arguments.verify or None),
        ("--require-digest", arguments.require_digest),
        ("--allow-links", arguments.allow_links or None),
    ]
    for flag, value in [*local, *((each.flag, getattr(arguments, each.field)) for each in OPTION_FLAGS)]:
        if value is not None:
            raise KontextError(f"{flag} has no effect with {server}")


def verify(bundle: Bundle, show: bool, compiled: bool = True) -> None:
    """`Bundle.verify` with a progress bar if it takes over 2 seconds; warns of files that are not in the manifest."""
    from tqdm import tqdm

    total = bundle.bytes_to_verify(compiled)
    with tqdm(total=total, desc="verify", unit="B", unit_scale=True, delay=2, disable=not show) as bar:
        bundle.verify(bar.update, compiled=compiled)
    if unlisted := bundle.unlisted():
        warnings.warn(
            f"never loaded, since not in {bundle.folder}'s manifest: {short_list(unlisted)}", stacklevel=2
        )


def short_list(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code, see `run_command`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["devices"]:
        from . import devices_command

        return run_command(lambda: devices_command.run(devices_command.parser().parse_args(words[1:])))
    return run_command(lambda: run(parser().parse_args(words)))


if __name__ == "__main__":
    sys.exit(main())
