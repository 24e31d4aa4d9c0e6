"""Compiled engines of a bundle's graphs: `kontext-export BUNDLE --engine rtx --target sm86,sm89,sm120`.

Engines go into the bundle's `engines/<architecture>/` one by one, each recorded in the manifest as soon as it is whole,
so a build that was stopped goes on where it was. An engine that is there already, of the same graph with the same
options, is not built again.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...compute_capability import engine_target, parse_capabilities
from ...errors import KontextError
from ...runtime.bundle import MANIFEST_NAME, Bundle
from ...runtime.cache import cache_folder
from ...runtime.cuda_driver import CudaDriver, has_gpu
from ...runtime.engines import LIBRARIES, WEIGHTS, load_library, platform_name, read_engines
from ..bundle.journal import write_atomic
from ..bundle.manifest import manifest_bytes
from ..progress import Progress
from .formats import best_weights, check_bundle, formats_of
from .process import BuilderProcess
from .profiles import profiles

FOLDER = "engines"

BATCH = 4
"""Rows of the largest batch, unless asked otherwise; more are run one batch after the other."""

STREAMED_BYTES = 1 << 30
"""Weights of a graph from which on its engine can leave some in the host's memory, for small cards."""


@dataclass(frozen=True)
class EngineOptions:
    """What is asked for.

    Args:
        library: rtx or tensorrt.
        targets: architectures, such as sm89; empty for the GPU of this machine.
        weights: one of `runtime.engines.WEIGHTS`; None for what `engine_formats.best_weights` says of each graph.
        batch: the largest batch.
        reuse: another bundle, whose engines are taken where they fit.
    """

    library: str
    targets: tuple[str, ...] = ()
    weights: str | None = None
    batch: int = BATCH
    reuse: Path | None = None


@dataclass
class EngineSummary:
    """What was done: for each engine its file in the bundle."""

    built: dict[str, dict[str, Any]] = field(default_factory=dict)
    """File → size, seconds, peak_bytes, layers as the compiler's process reports them."""
    reused: list[str] = field(default_factory=list)


def engine_options(given: argparse.Namespace) -> EngineOptions:
    """What the command line's flags say. Raises KontextError."""
    return EngineOptions(
        given.engine,
        () if given.target is None else parse_targets(given.target),
        given.engine_weights,
        BATCH if given.engine_batch is None else given.engine_batch,
        given.engines_from,
    )


def parse_targets(text: str) -> tuple[str, ...]:
    """ "sm_86,8.9" as ("sm86", "sm89"), the manifest's spelling. Raises KontextError."""
    return tuple(map(engine_target, parse_capabilities(text)))


def check_options(options: EngineOptions) -> EngineOptions:
    """The options with what was left open decided.

    Raises:
        KontextError: the library is not installed, or cannot build for a target on this machine.
    """
    library, title = load_library(options.library), LIBRARIES[options.library].title
    gpu = has_gpu()
    if options.weights not in (None, *WEIGHTS):
        raise KontextError(f"--engine-weights is one of {', '.join(WEIGHTS)}, not {options.weights!r}")
    if options.weights == "stripped" and not gpu:
        raise KontextError(
            f"{title} needs a GPU in this machine to build engines without weights for its own refit: "
            "use --engine-weights bound or inside"
        )
    if options.batch < 1:
        raise KontextError(f"--engine-batch must be 1 or more, not {options.batch}")
    known = architectures(library)
    here = CudaDriver().target if gpu else None
    targets = options.targets or ((here,) if here else ())
    if not targets:
        examples = ",".join(known) or "sm89"
        raise KontextError(
            f"there is no GPU here to build for: name the architectures, as --target {examples}"
        )
    for target in targets:
        if known and target not in known:
            raise KontextError(
                f"{title} {library.__version__} builds for {', '.join(known)}, not for {target}"
            )
        if not known and target != here:
            raise KontextError(
                f"{title} builds for the GPU of this machine alone ({here or 'there is none'})"
            )
    return replace(options, targets=targets)


def architectures(library: Any) -> list[str]:
    """What TensorRT for RTX builds for ahead of time; nothing for TensorRT."""
    if not hasattr(library, "ComputeCapability"):
        return []
    names = [name.lower() for name in dir(library.ComputeCapability) if re.fullmatch(r"SM\d+", name)]
    return sorted(names, key=lambda name: int(name[2:]))


def build_engines(folder: Path, options: EngineOptions, show_progress: bool = False) -> EngineSummary:
    """Builds the engines of the bundle in `folder` for every target, and records them in its manifest.

    Raises:
        KontextError: the bundle cannot be an engine, a target cannot compute in its formats, or the library refuses
            a graph.
    """
    options = check_options(options)
    version = load_library(options.library).__version__
    summary = EngineSummary()
    with locked(folder):
        bundle = Bundle.open(folder)
        for target in options.targets:
            check_bundle(bundle, target)
        read_engines(bundle)  # what is there must be sound
        sweep(bundle)
        wanted = [
            describe(bundle, graph, target, options, version)
            for target in options.targets
            for graph in bundle.graphs
        ]
        other = Bundle.open(options.reuse) if options.reuse is not None else None
        todo = []
        for entry in wanted:
            if find(bundle, entry) is not None:
                summary.reused.append(entry["file"])
            elif other is not None and (source := find(other, entry)) is not None:
                copy(source, folder / entry["file"])
                bundle = record(bundle, entry)
                summary.reused.append(entry["file"])
            else:
                todo.append(entry)
        if todo:
            with (
                BuilderProcess(options.library) as builder,
                Progress(show_progress).steps("engines", len(todo)) as step,
            ):
                for entry in todo:
                    with Progress(show_progress).phases(f"{entry['graph']} {entry['target']}") as phase:
                        result = builder.build(job(bundle, entry, options), phase)
                    summary.built[entry["file"]] = result
                    bundle = record(bundle, entry)
                    step(1)
    return summary


def describe(bundle: Bundle, graph: str, target: str, options: EngineOptions, version: str) -> dict[str, Any]:
    """The manifest's entry of an engine, which also says whether one that is there is the same."""
    files = bundle.files
    graph_file = bundle.graphs[graph].path.relative_to(bundle.folder).as_posix()
    formats = formats_of(bundle, graph)
    weights = options.weights or best_weights(formats, has_gpu())
    entry: dict[str, Any] = {
        "graph": graph,
        "library": options.library,
        "version": version,
        "platform": platform_name(),
        "target": target,
        "precision": str(formats),
        "weights": weights,
        "graph_sha256": files[graph_file].sha256,
        "profiles": [
            {
                "use": profile.use,
                "inputs": {
                    name: [list(shape) for shape in shapes] for name, shapes in profile.inputs.items()
                },
            }
            for profile in profiles(bundle, graph, options.batch, graph_inputs(bundle, graph))
        ],
    }
    if weights != "bound" and bundle.graphs[graph].weights.stat().st_size >= STREAMED_BYTES:
        entry["streams"] = True
    if weights == "inside":
        weights_file = bundle.graphs[graph].weights.relative_to(bundle.folder).as_posix()
        entry["weights_sha256"] = files[weights_file].sha256
    digest = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
    name = f"{graph}-{options.library}{version}-{target}-{formats}-{entry['graph_sha256'][:8]}-{digest[:8]}"
    entry["file"] = f"{FOLDER}/{target}/{name}.engine"
    return entry


def graph_inputs(bundle: Bundle, graph: str) -> dict[str, tuple[int | str, ...]]:
    """A graph's inputs, with the contract's names for what varies."""
    import onnx

    model = onnx.load(str(bundle.graphs[graph].path), load_external_data=False)
    return {
        value.name: tuple(
            dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim
        )
        for value in model.graph.input
    }


def find(bundle: Bundle, entry: dict[str, Any]) -> Path | None:
    """The file of an engine like `entry` in a bundle, if its bytes are what the manifest says."""
    for other in bundle.manifest.get("engines", []):
        if other == entry and entry["file"] in bundle.files:
            path = bundle.folder / entry["file"]
            with path.open("rb") as file:
                if file_digest(file) == bundle.files[entry["file"]].sha256:
                    return path
    return None


def file_digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def job(bundle: Bundle, entry: dict[str, Any], options: EngineOptions) -> dict[str, Any]:
    """What the compiler's process is told."""
    graph, target = entry["graph"], entry["target"]
    timings = cache_folder() / "timings" / f"{options.library}-{entry['version']}-{target}.cache"
    return {
        "graph": str(bundle.graphs[graph].path.absolute()),
        "output": str((bundle.folder / entry["file"]).absolute()),
        "target": target,
        "weights": entry["weights"],
        "profiles": [profile["inputs"] for profile in entry["profiles"]],
        # The transformer's scores would be 3.6 GB at 8,700 tokens: there, one kernel or none.
        "decompose": graph != "transformer",
        "stream": entry.get("streams", False),
        "timing_cache": str(timings),
    }


def record(bundle: Bundle, entry: dict[str, Any]) -> Bundle:
    """Writes an engine that is there into the manifest, in the place of any other for the same graph and target."""
    folder = bundle.folder
    manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    same = ("graph", "library", "version", "platform", "target")
    replaced = [
        other
        for other in manifest["engines"]
        if all(other.get(key) == entry[key] for key in same) and other["file"] != entry["file"]
    ]
    gone = {other["file"] for other in replaced}
    manifest["engines"] = sorted(
        [other for other in manifest["engines"] if other["file"] not in gone | {entry["file"]}] + [entry],
        key=lambda other: str(other["file"]),
    )
    path = folder / entry["file"]
    with path.open("rb") as file:
        manifest["files"][entry["file"]] = {"size": path.stat().st_size, "sha256": file_digest(file)}
    for name in gone:
        manifest["files"].pop(name, None)
    write_atomic(folder / MANIFEST_NAME, manifest_bytes(manifest))
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    return Bundle.open(folder)


def sweep(bundle: Bundle) -> None:
    """Removes what a build that was killed has left: engines that the manifest does not know."""
    for path in (bundle.folder / FOLDER).glob("sm*/*.engine*"):
        if path.relative_to(bundle.folder).as_posix() not in bundle.files:
            path.unlink()


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    shutil.copyfile(source, temporary)
    temporary.replace(target)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One build at a time in a bundle."""
    if not folder.is_dir():
        raise KontextError(f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise KontextError(f"another build of engines is at work in {folder}") from None
        yield
    finally:
        os.close(descriptor)


def rendered(summary: EngineSummary) -> str:
    """The summary in words, a line for each architecture."""
    lines = []
    for target in dict.fromkeys(file.split("/")[1] for file in (*summary.built, *summary.reused)):
        built = {file: result for file, result in summary.built.items() if file.split("/")[1] == target}
        reused = sum(file.split("/")[1] == target for file in summary.reused)
        size, seconds = (sum(result[key] for result in built.values()) for key in ("size", "seconds"))
        lines.append(
            f"{FOLDER}/{target}: {len(built)} built ({size / 1e6:.1f} MB, {seconds:.0f} s), {reused} reused"
        )
    return "\n".join(lines)
