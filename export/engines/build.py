"""Compiled engines of a bundle's graphs: `kontext-export BUNDLE --engine rtx --target sm86,sm89,sm120`.

Engines go into the bundle's `engines/<architecture>/`. Each is recorded in the manifest as soon as it is finished, so
an interrupted build resumes. An existing engine of the same graph with the same options is reused.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...compute_capability import engine_target, parse_capabilities
from ...errors import KontextError
from ...files import replacing
from ...runtime.bundle import Bundle
from ...runtime.cache import cache_folder
from ...runtime.cuda_driver import CudaDriver, has_gpu
from ...runtime.engines import LIBRARIES, WEIGHTS, load_library, platform_name, read_engines
from ..bundle.additions import is_sound, locked, record, remove_unfinished
from ..progress import Progress
from .formats import best_weights, check_bundle, formats_of
from .process import BuilderProcess
from .profiles import profiles

FOLDER = "engines"

BATCH = 4
"""Default largest batch; more rows are run as several batches."""

STREAMED_BYTES = 1 << 30
"""Bytes of weights from which on an engine is built so that it can leave some in host memory, for small cards."""


@dataclass(frozen=True)
class EngineOptions:
    """How engines are built.

    Args:
        library: rtx or tensorrt.
        targets: architectures, such as sm89; empty for the GPU of this machine.
        weights: one of `runtime.engines.WEIGHTS`; None for `formats.best_weights` of each graph.
        batch: the largest batch.
        reuse: another bundle, whose engines are reused where they fit.
    """

    library: str
    targets: tuple[str, ...] = ()
    weights: str | None = None
    batch: int = BATCH
    reuse: Path | None = None


@dataclass(frozen=True)
class EngineSummary:
    """What a build did; engines by their file in the bundle."""

    built: Mapping[str, Mapping[str, Any]]
    """File → size, seconds, peak_bytes, layers as the compiler's process reports them."""
    reused: Sequence[str]


def parse_targets(text: str) -> tuple[str, ...]:
    """ "sm_86,8.9" as ("sm86", "sm89"), the manifest's spelling. Raises KontextError."""
    return tuple(map(engine_target, parse_capabilities(text)))


def resolve_options(options: EngineOptions) -> EngineOptions:
    """The options with this machine's GPU for targets if there are none.

    Raises:
        KontextError: an option is wrong, the library is not installed, or it cannot build for a target on this machine.
    """
    library, title = load_library(options.library), LIBRARIES[options.library].title
    gpu = has_gpu()
    if options.weights not in (None, *WEIGHTS):
        raise KontextError(f"--engine-weights is one of {', '.join(WEIGHTS)}, not {options.weights!r}")
    if options.weights == "stripped" and not gpu:
        raise KontextError(
            f"{title} needs a GPU in this machine to build stripped engines: use --engine-weights bound or inside"
        )
    if options.batch < 1:
        raise KontextError(f"--engine-batch must be 1 or more, not {options.batch}")
    known = architectures(library)
    here = CudaDriver().target if gpu else None
    targets = options.targets or ((here,) if here else ())
    if not targets:
        examples = ",".join(known) or "sm89"
        raise KontextError(
            f"this machine has no GPU to build for: name the architectures, such as --target {examples}"
        )
    for target in targets:
        if known and target not in known:
            raise KontextError(
                f"{title} {library.__version__} builds for {', '.join(known)}, not for {target}"
            )
        if not known and target != here:
            raise KontextError(
                f"{title} builds only for the GPU of this machine ({here or 'there is none'}), not for {target}"
            )
    return replace(options, targets=targets)


def architectures(library: Any) -> list[str]:
    """Architectures that TensorRT for RTX can build for on any machine; none for TensorRT."""
    if not hasattr(library, "ComputeCapability"):
        return []
    names = [name.lower() for name in dir(library.ComputeCapability) if re.fullmatch(r"SM\d+", name)]
    return sorted(names, key=lambda name: int(name[2:]))


def build_engines(folder: Path, options: EngineOptions, show_progress: bool = False) -> EngineSummary:
    """Builds the engines of the bundle in `folder` for every target, and records them in its manifest.

    Raises:
        KontextError: TensorRT does not support the bundle or a target its number formats, or the library refuses a
            graph.
    """
    options = resolve_options(options)
    version = load_library(options.library).__version__
    progress = Progress(show_progress)
    built: dict[str, dict[str, Any]] = {}
    reused = []
    with locked(folder):
        bundle = Bundle.open(folder)
        for target in options.targets:
            check_bundle(bundle, target, options.weights)
        read_engines(bundle)  # existing entries must be valid
        remove_unfinished(bundle)
        other = Bundle.open(options.reuse) if options.reuse is not None else None
        missing = []
        for target in options.targets:
            for graph in bundle.graphs:
                entry = manifest_entry(bundle, graph, target, options, version)
                if find_engine(bundle, entry) is not None:
                    reused.append(entry["file"])
                elif other is not None and (source := find_engine(other, entry)) is not None:
                    copy_engine(source, folder / entry["file"])
                    bundle = record_engine(bundle, entry)
                    reused.append(entry["file"])
                else:
                    missing.append(entry)
        if missing:
            with (
                BuilderProcess(options.library) as builder,
                progress.steps("engines", len(missing)) as advance,
            ):
                for entry in missing:
                    with progress.phases(f"{entry['graph']} {entry['target']}") as on_phase:
                        built[entry["file"]] = builder.build(compiler_job(bundle, entry, options), on_phase)
                    bundle = record_engine(bundle, entry)
                    advance(1)
    return EngineSummary(built, reused)


def manifest_entry(
    bundle: Bundle, graph: str, target: str, options: EngineOptions, version: str
) -> dict[str, Any]:
    """The manifest's entry of an engine; an existing engine with an equal entry is the same engine."""
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
    if weights == "inside" or formats.blocks:  # scales of blocks are constants of every engine
        weights_file = bundle.graphs[graph].weights.relative_to(bundle.folder).as_posix()
        entry["weights_sha256"] = files[weights_file].sha256
    digest = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
    name = f"{graph}-{options.library}{version}-{target}-{formats}-{entry['graph_sha256'][:8]}-{digest[:8]}"
    entry["file"] = f"{FOLDER}/{target}/{name}.engine"
    return entry


def graph_inputs(bundle: Bundle, graph: str) -> dict[str, tuple[int | str, ...]]:
    """Name → shape of a graph's inputs, dynamic dimensions by name."""
    import onnx

    model = onnx.load_model_from_string(bundle.graph_bytes(graph))
    return {
        value.name: tuple(
            dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim
        )
        for value in model.graph.input
    }


def find_engine(bundle: Bundle, entry: dict[str, Any]) -> Path | None:
    """The file of an engine with this entry in a bundle, if its SHA-256 is the manifest's."""
    for other in bundle.manifest.get("engines", []):
        if other == entry and is_sound(bundle, entry["file"]):
            return bundle.folder / entry["file"]
    return None


def compiler_job(bundle: Bundle, entry: dict[str, Any], options: EngineOptions) -> dict[str, Any]:
    """The job of `compiler.build_engine` that makes an engine."""
    graph, target = entry["graph"], entry["target"]
    timings = cache_folder() / "timings" / f"{options.library}-{entry['version']}-{target}.cache"
    return {
        "graph": str(bundle.graphs[graph].path.absolute()),
        "output": str((bundle.folder / entry["file"]).absolute()),
        "target": target,
        "weights": entry["weights"],
        "profiles": [profile["inputs"] for profile in entry["profiles"]],
        # Decomposed, the transformer's attention scores would be 3.6 GB at 8,700 tokens.
        "decompose": graph != "transformer",
        "stream": entry.get("streams", False),
        "timing_cache": str(timings),
    }


def record_engine(bundle: Bundle, entry: dict[str, Any]) -> Bundle:
    """Adds an engine to the manifest and removes older ones for the same graph and target; returns the new bundle."""
    same = ("graph", "library", "version", "platform", "target")
    gone = {
        other["file"]
        for other in bundle.manifest["engines"]
        if all(other.get(key) == entry[key] for key in same) and other["file"] != entry["file"]
    }

    def change(manifest: dict[str, Any]) -> None:
        kept = [other for other in manifest["engines"] if other["file"] not in gone | {entry["file"]}]
        manifest["engines"] = sorted([*kept, entry], key=lambda other: str(other["file"]))

    return record(bundle, change, added=[entry["file"]], removed=gone)


def copy_engine(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
