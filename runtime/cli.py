"""`kontext-edit BUNDLE -i in.png --prompt "…" -o out.png`: one edit from the command line.

With `--server URL` instead of BUNDLE an inference server runs it.
"""

from __future__ import annotations

import argparse
import io
import secrets
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command import Parser, local_path, run_command
from ..errors import KontextError
from ..lora_flag import parse_lora_flag
from .arguments import STDIN, read_arguments
from .backend_flags import OPTION_FLAGS, RUN_BY, add_backend_flags, backend_options
from .backends.options import AUTO, BackendOptions
from .reference_options import REFERENCE_METHODS, parse_rule, parse_size, usual_sizes
from .repaint_flags import add_repaint_flags, repaint_arguments, sent_arguments
from .report import Report

if TYPE_CHECKING:
    from PIL import Image

    from .bundle import Bundle
    from .like import Like
    from .pipeline import Pipeline


PREVIEW_SCALE = 8
"""A preview has a pixel for a latent; FLUX.1's autoencoder makes 8x8 pixels of one."""

MAX_IMAGES = 1000
"""Pictures of one command; they are all in memory before the first is written."""


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
        help="a reference picture, - for stdin; repeat it for several, leave it out to draw from the prompt alone",
    )
    result.add_argument("-p", "--prompt", help="the instruction")
    result.add_argument(
        "--prompt-file",
        type=local_path,
        metavar="FILE",
        help="instead of --prompt: a file with it, - for stdin",
    )
    result.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="the picture to write, replaced if it exists; - for a PNG file on stdout",
    )
    result.add_argument(
        "--like",
        type=local_path,
        metavar="FILE",
        help="make this picture again, from the same -i, as its metadata say; other flags override them",
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
    result.add_argument(
        "--preview",
        type=Path,
        metavar="FILE",
        help="after each step, write what the picture would become there, in rough colours",
    )
    result.add_argument(
        "--no-config",
        dest="config",
        action="store_false",
        help="ignore the defaults in ~/.config/kontext/config.toml",
    )
    result.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object on stdout: the pictures, seconds of each stage, warnings",
    )
    result.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="say on stderr what runs where, and where defaults come from",
    )
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
    parser.add_argument(
        "--seed", type=parse_seed, default=0, metavar="N", help="seed of the noise, or random (default: 0)"
    )
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


def parse_seed(text: str) -> int:
    """A seed; "random" draws one of 32 bits, which other programs take too."""
    if text == "random":
        return secrets.randbelow(1 << 32)
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes a whole number, or random, not {text!r:.40}") from None


def edit_arguments(arguments: argparse.Namespace, *, reduce: bool | None = None) -> dict[str, Any]:
    """What the flags of `add_edit_flags` say, as arguments of `Pipeline.edit`; reads the pictures that they name.

    Args:
        arguments: with the flags.
        reduce: as for `open_picture`; None: what the flags call for.
    """
    return {
        "steps": arguments.steps,
        "guidance": arguments.guidance,
        "seed": arguments.seed,
        "size": arguments.size,
        "reference_method": arguments.reference_method,
        "reference_size": arguments.reference_size,
        **repaint_arguments(arguments, reduce=reduces(arguments) if reduce is None else reduce),
    }


def reduces(arguments: argparse.Namespace) -> bool:
    """Whether large pictures of an edit with these flags may be decoded smaller, as by `open_picture`."""
    return arguments.size is None and usual_sizes(arguments.reference_size, arguments.reference_method)


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


def run(words: Sequence[str]) -> None:
    arguments = read_arguments(parser(), words, RUN_BY)
    # Errors that need no model are found before one is loaded.
    for name, value in (("steps", arguments.steps), ("num-images", arguments.num_images)):
        if value is not None and value < 1:
            raise KontextError(f"--{name} must be 1 or more, not {value}")
    if arguments.num_images > MAX_IMAGES:
        raise KontextError(f"--num-images may be at most {MAX_IMAGES}, not {arguments.num_images}")
    if (arguments.bundle is None) == (arguments.server is None):
        raise KontextError("name either a BUNDLE or a --server (kontext-edit --help shows the flags)")
    to_stdout = str(arguments.output) == STDIN
    if to_stdout:
        check_stdout(arguments)
    if arguments.image.count(Path(STDIN)) > 1:
        raise KontextError("-i - reads one picture from stdin: name the others")
    from .images import check_writable, png_file, save_picture
    from .picture_limits import MAX_BYTES

    paths = output_paths(arguments.output, arguments.num_images)
    if arguments.preview in paths:
        raise KontextError(f"--preview and -o both name {arguments.preview}: only one of them can")
    for path in filter(None, (arguments.preview, *(() if to_stdout else paths))):
        check_writable(path)
    arguments.stdin = sys.stdin.buffer.read(MAX_BYTES + 1) if Path(STDIN) in arguments.image else b""
    report = Report(arguments.json, arguments.verbose, arguments.quiet, stdout_is_taken=to_stdout)
    for name, place in arguments.origins.items():
        report.detail(f"{name.replace('_', '-')} {getattr(arguments, name)} (from {place})")
    report.detail(f"seed {arguments.seed}")
    with report.warnings():
        try:
            edit = edit_locally if arguments.server is None else edit_on_server
            pictures = edit(arguments, report)
        except MemoryError:
            raise KontextError("not enough memory: try a smaller --size, or fewer --num-images") from None
        with report.stage("write"):
            for index, (picture, path) in enumerate(zip(pictures, paths, strict=True)):
                if to_stdout:
                    sys.stdout.buffer.write(png_file(picture, metadata=arguments.metadata))
                else:
                    save_picture(picture, path, metadata=arguments.metadata)
                    report.wrote(picture, path, arguments.seed + index)
    report.print()


def check_stdout(arguments: argparse.Namespace) -> None:
    """Raises KontextError if stdout cannot take the picture."""
    if arguments.num_images > 1:
        raise KontextError("-o - writes one picture: name a file for several")
    if arguments.json:
        raise KontextError("-o - and --json both write to stdout: only one of them can")
    if sys.stdout.isatty():
        raise KontextError(
            "-o - writes a PNG file to stdout, which is a terminal: redirect it, or name a file"
        )


def shows_progress(arguments: argparse.Namespace) -> bool:
    return sys.stderr.isatty() and not arguments.quiet


def edit_locally(arguments: argparse.Namespace, report: Report) -> list[Image.Image]:
    """The pictures, made from the bundle at `arguments.bundle`."""
    from .backends.timed import TimedBackend
    from .preview import check_previews

    backend = backend_options(arguments)  # a flag that is wrong is found before pictures are read
    with report.stage("read"):
        images, edit = read_inputs(arguments)
    # A single edit uses each network in one part only: keeping it, or what it made, would only cost memory.
    with report.stage("load"):
        pipe = open_pipeline(arguments, backend, low_memory=True, embedding_cache=0)
    running = pipe.running
    report.detail(f"bundle {pipe.bundle.folder}: {pipe.bundle.name}, {pipe.bundle.digest}")
    report.detail(
        f"all networks: {running.backend} on {running.device} {dict(running.options) or ''}".rstrip()
    )
    if arguments.like is not None:
        arguments.like.check_bundle(pipe.bundle.name, pipe.bundle.digest)
        arguments.like.check_loras(pipe.loras.loaded)
    if pipe.choice is not None and shows_progress(arguments):
        report.say(str(pipe.choice))
    elif pipe.choice is not None:
        report.notes.append(str(pipe.choice))
    if arguments.preview is not None:
        check_previews(pipe.bundle)
    running_backend, pipe.backend = pipe.backend, TimedBackend(pipe.backend, report.seconds)
    pictures = pipe.edit(
        [images],
        [arguments.prompt],
        num_images=arguments.num_images,
        progress=shows_progress(arguments),
        callback=None
        if arguments.preview is None
        else lambda *_: show_preview(pipe.previews()[0], arguments.preview),
        **edit,
    )
    if approximated := getattr(running_backend, "approximated", ""):  # the torch backend has it
        report.notes.append(f"approximated: {approximated}")
    return pictures


def show_preview(preview: Image.Image, path: Path) -> None:
    """Writes a preview in about the picture's size."""
    from PIL.Image import Resampling

    from .images import save_picture

    size = preview.width * PREVIEW_SCALE, preview.height * PREVIEW_SCALE
    save_picture(preview.resize(size, Resampling.LANCZOS), path, metadata=False)


def read_inputs(arguments: argparse.Namespace) -> tuple[list[Image.Image], dict[str, Any]]:
    """The references, and the other arguments of `Pipeline.edit`.

    For --like, large JPEG files are decoded smaller or whole, as they were then.
    """
    from .images import open_picture, read_picture

    like = arguments.like
    if like is not None:
        like.check_counts(
            {
                "references": len(arguments.image),
                "mask": arguments.mask is not None,
                "init_image": arguments.init_image is not None,
            },
            len(arguments.lora) if arguments.server is None else len(like.made.running.loras),
        )
    others: list[str] = []
    for reduce in (reduces(arguments),) if like is None else (True, False):
        images = [
            open_picture(path, reduce=reduce)
            if str(path) != STDIN
            else read_picture(io.BytesIO(arguments.stdin), "stdin", reduce=reduce)
            for path in arguments.image
        ]
        edit = edit_arguments(arguments, reduce=reduce)
        others = [] if like is None else others_than(like, arguments, images, edit)
        if not others:
            break
    for note in others:
        warnings.warn(note, stacklevel=2)
    return images, edit


def others_than(
    like: Like, arguments: argparse.Namespace, images: Sequence[Image.Image], edit: Mapping[str, Any]
) -> list[str]:
    """What is to be said of input pictures that are not those of --like."""
    from .masks import to_grey
    from .rgb import upright_rgb

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the edit warns of them
        given = {
            "references": [
                (path, upright_rgb(each)) for path, each in zip(arguments.image, images, strict=True)
            ]
        }
        for name, converted in (("mask", to_grey), ("init_image", upright_rgb)):
            if edit[name] is not None:
                given[name] = [(getattr(arguments, name), converted(edit[name]))]
    return like.others(given)


def open_pipeline(arguments: argparse.Namespace, backend: BackendOptions | str, **options: Any) -> Pipeline:
    """A pipeline with the bundle and the flags of `add_backend_flags`; `options` are others of `Pipeline.load`."""
    from .bundle import Bundle
    from .pipeline import Pipeline

    device, pinned = arguments.device or AUTO, arguments.require_digest
    bundle = Bundle.open(arguments.bundle, digest=pinned, allow_links=arguments.allow_links)
    if not isinstance(backend, str):
        backend.check(device, bundle)
    if arguments.verify or pinned is not None:
        verify(bundle, shows_progress(arguments), compiled=arguments.verify)
    pipeline = Pipeline.load(bundle, device=device, backend=backend, **options)
    pipeline.load_loras([parse_lora_flag(text) for text in arguments.lora])
    return pipeline


def edit_on_server(arguments: argparse.Namespace, report: Report) -> list[Image.Image]:
    """The pictures, made by the server at `arguments.server`."""
    refuse_local_flags(arguments, "--server")
    from tqdm import tqdm

    from .metadata import KEY
    from .sent_pictures import as_sent, picture_file
    from .server_client import Edit, connect, edit_all

    if arguments.like is not None:
        read_inputs(arguments)  # warns of others than then
    images = [
        picture_file(path) if str(path) != STDIN else as_sent(arguments.stdin, "stdin")
        for path in arguments.image
    ]
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
            loras=arguments.lora,
            **repaint,
        )
        for index in range(arguments.num_images)
    ]
    if arguments.preview is not None:
        edits[0] = replace(edits[0], on_preview=lambda preview: show_preview(preview, arguments.preview))
    client = connect(arguments.server)
    with tqdm(unit="step", disable=not shows_progress(arguments)) as bar:

        def on_step(total: int) -> None:
            bar.total = total * len(edits)
            bar.update()

        with report.stage("server"):
            answers = edit_all(client, edits, on_step)
    for text in dict.fromkeys(text for answer in answers for text in answer.warnings):
        warnings.warn(text, stacklevel=2)
    pictures = [answer.picture for answer in answers]
    made = pictures[0].info.get(KEY)
    report.detail(f"server {arguments.server}" + (f": {made['bundle']}, {made['running']}" if made else ""))
    if made is not None and arguments.like is not None:
        arguments.like.check_answer(made)
    return pictures


def refuse_local_flags(arguments: argparse.Namespace, server: str, *more: tuple[str, object]) -> None:
    """Raises KontextError if a flag of `add_backend_flags`, or one of `more` with its value, is given beside the flag
    `server`: what runs there was decided there."""
    local = [
        *more,
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
    return run_command(lambda: run(words))


if __name__ == "__main__":
    sys.exit(main())
