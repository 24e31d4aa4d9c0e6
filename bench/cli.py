"""`kontext-bench`: measures a bundle, beside diffusers where asked for; tables on stdout, JSON on request."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import KontextError
from ..export.cli.source_flags import EMBEDDED
from ..runtime.cli import parse_width_height
from .command_line import exit_code, show
from .inputs import parse_counts
from .report import Table, write_json


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="kontext-bench", description=__doc__)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, summary: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(run=run)
        command.add_argument(
            "--json", type=Path, metavar="FILE", help="write the result there, with the machine"
        )
        return command

    latency = add(
        "latency", "Medians and p95 of every stage and step of an edit, after warm-up.", run_latency
    )
    latency.add_argument("bundle", type=Path)
    latency.add_argument("--against", choices=["diffusers"], help="measure this peer in turn, same weights")
    latency.add_argument("--device", default="cpu", choices=["cpu", "cuda", "rtx", "tensorrt"])
    latency.add_argument(
        "--warmup", type=int, default=2, help="edits of each side before the clock counts (2)"
    )
    add_edit_options(latency, steps=28, repeat=10)

    cold = add(
        "coldstart", "Process start to PNG, kontext-edit beside a script with diffusers.", run_coldstart
    )
    cold.add_argument("bundle", type=Path)
    add_edit_options(cold, steps=4, repeat=5)

    export = add("export", "Time and peak memory of exporting.", run_export)
    export.add_argument(
        "model", type=Path, nargs="?", default=EMBEDDED, help="a diffusers folder (embedded model)"
    )
    export.add_argument("--formats", default="fp32,fp16,bf16,fp8,int8,int4", help="comma-separated (all)")
    export.add_argument("--repeat", type=int, default=3, help="exports of each format (3)")

    edits = add("edits", "Success of each kind of edit on held-out scenes, by the embedded judge.", run_edits)
    edits.add_argument("bundle", type=Path)
    edits.add_argument("--steps", default="28,4", help="one table column for each (28,4)")
    edits.add_argument("-n", "--count", type=int, default=50, help="edits of each kind (50)")
    edits.add_argument("--guidance", type=float, default=None, help="(the bundle's)")
    edits.add_argument("--seed", type=int, default=0)
    edits.add_argument("--batch", type=int, default=25, help="edits run at once (25)")
    edits.add_argument("--device", default="cpu", choices=["cpu", "cuda", "rtx", "tensorrt"])

    fidelity = add(
        "fidelity", "How close bundles stay to a reference bundle, on held-out edits.", run_fidelity
    )
    fidelity.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    fidelity.add_argument(
        "--reference", type=Path, required=True, metavar="BUNDLE", help="the same model in full precision"
    )
    fidelity.add_argument(
        "--peers",
        metavar="NAME,…",
        help="measure other libraries' quantization of the same weights too, such as torchao-int4,bnb-nf4,gguf-q4_0; "
        "all: those whose library is installed",
    )
    fidelity.add_argument("--steps", type=int, default=28, help="(28)")
    fidelity.add_argument("-n", "--count", type=int, default=2, help="edits of each kind (2)")
    fidelity.add_argument("--seed", type=int, default=0)

    serving = add("serving", "Throughput and latency of a server against the number of callers.", run_serving)
    serving.add_argument(
        "server",
        metavar="URL|BUNDLE",
        help="http://HOST:8000, grpc://HOST:8001, or a bundle, which is then served here (needs `make server`)",
    )
    serving.add_argument("--concurrency", default="1,2,4,8,16", help="callers at once (1,2,4,8,16)")
    serving.add_argument("--requests", type=int, default=32, help="edits at each concurrency, at least (32)")
    serving.add_argument("-i", "--image", type=Path, help="the picture to edit (a scene)")
    serving.add_argument("--prompt", help="the instruction (the scene's)")
    serving.add_argument("--steps", type=int, default=4, help="(4)")
    serving.add_argument("--size", metavar="WxH", help="of the output (the server's choice)")
    serving.add_argument("--plot", type=Path, metavar="FILE", help="draw the result there, as SVG")

    speed = add(
        "quantspeed",
        "Time of a step and memory of quantized bundles beside fp32 and diffusers in bf16, on random weights.",
        run_quantspeed,
    )
    speed.add_argument("--formats", default="int8,int4", help="comma-separated, beside fp32 (int8,int4)")
    speed.add_argument("--hidden", type=int, default=1024, help="width, a multiple of 128 from 512 on (1024)")
    speed.add_argument(
        "--tokens", type=int, default=1024, help="of the target, and as many of the reference (1024)"
    )
    speed.add_argument("--repeat", type=int, default=7, help="measured steps of each side (7)")
    speed.add_argument("--warmup", type=int, default=2, help="steps of each side before the clock counts (2)")
    speed.add_argument("--folder", type=Path, default=None, help="for bundles, 2 GB of them (the system's)")
    speed.add_argument("--without-diffusers", action="store_true", help="leave the peer out")

    readme = commands.add_parser(
        "readme", help="Rewrite the measured sections and plots of docs/ from bench/results."
    )
    readme.set_defaults(run=run_readme)
    readme.add_argument("root", type=Path, nargs="?", default=Path(), help="the repository (.)")
    readme.add_argument("--results", type=Path, default=Path("bench/results"), metavar="FOLDER")

    demo = commands.add_parser("demo", help="Edits of scenes and of a photograph, as a contact sheet.")
    demo.set_defaults(run=run_demo)
    demo.add_argument("bundle", type=Path)
    demo.add_argument(
        "-o", "--output", type=Path, default=Path("demo"), help="folder for the pictures (demo)"
    )
    demo.add_argument("--steps", type=int, default=28)
    demo.add_argument("--seed", type=int, default=0)
    return root


def add_edit_options(command: argparse.ArgumentParser, *, steps: int, repeat: int) -> None:
    command.add_argument("--checkpoint", type=Path, default=EMBEDDED, help="what the bundle was made from")
    command.add_argument("-i", "--image", type=Path, help="the picture to edit (a scene)")
    command.add_argument("--prompt", help="the instruction (the scene's)")
    command.add_argument("--size", metavar="WxH", help="of the output (the bundle's most square one)")
    command.add_argument("--steps", type=int, default=steps, help=f"({steps})")
    command.add_argument("--guidance", type=float, default=2.5, help="(2.5)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--repeat", type=int, default=repeat, help=f"measured edits of each side ({repeat})")


def edit_options(arguments: argparse.Namespace) -> dict[str, Any]:
    at_least(arguments, steps=1, repeat=1)
    return {
        "steps": arguments.steps,
        "guidance": arguments.guidance,
        "seed": arguments.seed,
        "size": parse_width_height(arguments.size) if arguments.size else None,
        "repeat": arguments.repeat,
        "image": arguments.image,
        "prompt": arguments.prompt,
        "progress": sys.stderr.isatty(),
    }


def at_least(arguments: argparse.Namespace, **least: int) -> None:
    for name, smallest in least.items():
        if getattr(arguments, name) < smallest:
            raise KontextError(f"--{name} must be at least {smallest}, not {getattr(arguments, name)}")


def finish(
    arguments: argparse.Namespace, result: dict[str, Any], tables: Sequence[Table], footer: str
) -> int:
    show(tables, footer)
    if arguments.json is not None:
        write_json(arguments.json, result)
        print(f"written to {arguments.json}")
    return 0


def run_latency(arguments: argparse.Namespace) -> int:
    from . import latency

    at_least(arguments, warmup=0)
    result = latency.measure(
        arguments.bundle,
        checkpoint=arguments.checkpoint if arguments.against else None,
        device=arguments.device,
        warmup=arguments.warmup,
        **edit_options(arguments),
    )
    return finish(arguments, result, latency.tables(result), latency.footer(result))


def run_coldstart(arguments: argparse.Namespace) -> int:
    from . import coldstart

    result = coldstart.measure(arguments.bundle, arguments.checkpoint, **edit_options(arguments))
    return finish(arguments, result, coldstart.tables(result), coldstart.footer(result))


def run_export(arguments: argparse.Namespace) -> int:
    from . import exporting

    at_least(arguments, repeat=1)
    formats = [name.strip() for name in arguments.formats.split(",")]
    if unknown := sorted(set(formats) - {"fp32", "fp16", "bf16", "fp8", "int8", "int4"}):
        raise KontextError(
            f"--formats takes fp32, fp16, bf16, fp8, int8 and int4, not {', '.join(map(repr, unknown))}"
        )
    progress = sys.stderr.isatty()
    result = exporting.measure(arguments.model, formats, repeat=arguments.repeat, progress=progress)
    return finish(arguments, result, exporting.tables(result), exporting.footer(result))


def run_edits(arguments: argparse.Namespace) -> int:
    from . import edits

    at_least(arguments, count=1, batch=1)
    result = edits.measure(
        arguments.bundle,
        steps=parse_counts(arguments.steps),
        count=arguments.count,
        guidance=arguments.guidance,
        seed=arguments.seed,
        batch=arguments.batch,
        device=arguments.device,
        progress=sys.stderr.isatty(),
    )
    return finish(arguments, result, edits.tables(result), edits.footer(result))


def run_fidelity(arguments: argparse.Namespace) -> int:
    from .fidelity import compare as fidelity
    from .fidelity import peers, report

    at_least(arguments, steps=1, count=1)
    names = peers.parse(arguments.peers)
    missing = {name: why for name in names if (why := peers.why_not(name)) is not None}
    if missing and arguments.peers != "all":
        raise KontextError("; ".join(missing.values()))
    for why in missing.values():
        print(f"left out: {why}", file=sys.stderr)
    result = fidelity.measure(
        arguments.reference,
        arguments.bundles,
        steps=arguments.steps,
        count=arguments.count,
        seed=arguments.seed,
        peer_names=[name for name in names if name not in missing],
        progress=sys.stderr.isatty(),
    )
    for line in report.absences(result):
        print(line)
    shown = [*report.tables(result), *report.detail_tables(result)]
    return finish(arguments, result, shown, report.footer(result))


def run_quantspeed(arguments: argparse.Namespace) -> int:
    from . import quantspeed

    at_least(arguments, repeat=1, warmup=0, hidden=512, tokens=16)
    result = quantspeed.measure(
        [name.strip() for name in arguments.formats.split(",")],
        hidden=arguments.hidden,
        tokens=arguments.tokens,
        repeat=arguments.repeat,
        warmup=arguments.warmup,
        folder=arguments.folder,
        diffusers=not arguments.without_diffusers,
        progress=sys.stderr.isatty(),
    )
    return finish(arguments, result, quantspeed.tables(result), quantspeed.footer(result))


def run_serving(arguments: argparse.Namespace) -> int:
    from . import serving
    from .local_server import connected
    from .report import write_text

    at_least(arguments, requests=1, steps=1)
    concurrency = parse_counts(arguments.concurrency, "--concurrency")
    size = parse_width_height(arguments.size) if arguments.size else None
    edit = serving.edit_of(arguments.image, arguments.prompt, arguments.steps, size)
    with connected(arguments.server) as (client, local):
        result = serving.measure(client, edit, concurrency, requests=arguments.requests)
    result["local"] = local
    if arguments.plot is not None:
        write_text(arguments.plot, serving.plot(result))
    return finish(arguments, result, serving.tables(result), serving.footer(result))


def run_readme(arguments: argparse.Namespace) -> int:
    from . import readme

    for document, sections in readme.rewrite_all(arguments.root, arguments.results).items():
        print(f"{document}: {', '.join(sections) or 'no results, no section'} rewritten")
    for plot in readme.draw(arguments.root, arguments.results):
        print(f"{plot} drawn")
    return 0


def run_demo(arguments: argparse.Namespace) -> int:
    from . import demo

    at_least(arguments, steps=1)
    print(demo.run(arguments.bundle, arguments.output, steps=arguments.steps, seed=arguments.seed))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    def work() -> int:
        arguments = parser().parse_args(argv)
        return int(arguments.run(arguments))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
