"""Describes a bundle from its manifest and the headers of its weights: `kontext-export inspect BUNDLE`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...bundle_folder import clean, recorded
from ...quant.formats.layer_fields import check_layers
from ...runtime.bundle import Bundle
from ...runtime.bundle_files import remedy
from ...runtime.cli import short_list
from ...runtime.engines import LIBRARIES, EngineEntry, read_engines
from ...runtime.links import is_own
from ...runtime.sampler_entry import SamplerEntry, SigmasEntry
from ...safetensors_header import read_header
from ..graph.interface import BUCKETS
from .summary import digest_line, human


def describe_bundle(path: Path) -> Iterator[str]:
    """Lines of text about the bundle `path`. Raises KontextError if it is damaged."""
    bundle = Bundle.open(path)
    check_layers(bundle.manifest, path)
    manifest = bundle.manifest
    size = sum(entry.size for entry in bundle.files.values())
    toolkit = group(manifest, "toolkit")
    yield f"{path}: a bundle of {bundle.name}, {human(size)} in {len(bundle.files) + 1} files"
    yield (
        f"  format {manifest['format_version']}, made by {clean(toolkit.get('name', '?'))} "
        f"{clean(toolkit.get('version', '?'))}, {digest_line(bundle.digest)}"
    )
    yield f"  checkpoint {recorded(manifest)}"
    precision = group(manifest, "precision")
    weights, compute = (clean(precision.get(name, "?")) for name in ("weights", "compute"))
    attention = f", attention in {clean(precision['attention'])}" if "attention" in precision else ""
    yield f"  {weights} weights, computes in {compute}{attention}"
    for graph in bundle.graphs:
        yield f"    {graph}: {describe_formats(bundle, graph)}"
    loras = group(manifest, "model").get("loras")
    for lora in (lora for lora in (loras if isinstance(loras, list) else ()) if isinstance(lora, dict)):
        yield f"  with the LoRA {clean(lora.get('file'))} at {clean(lora.get('weight'))}"
    if bundle.links:
        size = sum(link.size for link in bundle.links.values())
        yield f"  weights from {len(bundle.links)} files outside it ({human(size)}): {listed(bundle.links.values())}"
        if not is_own(bundle.digest):
            yield "    you have not exported it here: they are used with --allow-links only"
    yield from describe_calibration(group(manifest, "calibration"))
    yield from describe_plan(group(manifest, "plan"))
    tokens = bundle.tokenizers["t5"].max_length
    yield f"  {describe_sampler(bundle.sampler)}; prompts of {tokens} tokens for T5"
    if bundle.lora_slots is not None:
        yield f"  edits may bring LoRAs, of rank {bundle.lora_slots.max_rank} in all (kontext-edit --lora)"
    yield from describe_engines(bundle)
    yield from describe_kernels(bundle)
    if unlisted := bundle.unlisted():
        yield f"  never loaded, since not in its manifest: {short_list([clean(name) for name in unlisted])}"


def describe_file_of(path: Path, folder: Path) -> Iterator[str]:
    """Lines about `path`, one of the files of the bundle in `folder`."""
    bundle = Bundle.open(folder)
    name = path.absolute().relative_to(folder.absolute()).as_posix()
    graphs = [graph for graph, entry in bundle.graphs.items() if entry.weights == folder / name]
    what = f"the weights of {graphs[0]}" if graphs else "a file"
    yield f"{path}: {what} of the bundle {folder}, {human(bundle.files[name].size)}"
    if name in bundle.damaged:
        yield f"  {bundle.damaged[name]}: {remedy(name)}"
    for graph in graphs:
        yield f"  {describe_formats(bundle, graph)}"
    if graphs:
        yield "  not a checkpoint: weights of linear layers are transposed, [in, out]"
    yield f"  export again from the bundle's checkpoint ({recorded(bundle.manifest)})"


def group(data: Any, name: str) -> dict[str, Any]:
    """An object in a manifest; empty if it has none of that name."""
    value = data.get(name)
    return value if isinstance(value, dict) else {}


def listed(links: Iterable[Any]) -> str:
    paths = [str(link.path) for link in links]
    return ", ".join(paths[:3]) + (", …" if len(paths) > 3 else "")


def describe_formats(bundle: Bundle, graph: str) -> str:
    """How many of a graph's weights are stored in which format, as "12 fp8 (fp8 inputs), 30 bf16"."""
    precision = group(bundle.manifest, "precision")
    layers = group(group(precision, "layers"), graph)
    compute = clean(group(precision, "networks").get(graph, precision.get("compute", "?")))
    counts = Counter(map(describe_layer, layers.values()))
    quantized = tuple(f"{name}_" for name in layers)
    held = read_header(bundle.graphs[graph].weights).tensors
    names = [name for name in held if name not in layers and name != BUCKETS]
    plain = sum(not name.startswith(quantized) for name in names)  # the others are scales and branches
    if plain or not counts:
        counts[compute] += plain
    parts = [f"{count} {kind}" for kind, count in counts.most_common()]
    return f"{', '.join(parts)}; computes in {compute}" if set(counts) != {compute} else ", ".join(parts)


def describe_layer(layer: Any) -> str:
    """An entry of the manifest's `precision.layers`, as "int4 of rank 32 (int8 inputs, centred)"."""
    if not isinstance(layer, dict):
        return clean(layer)
    rank = f" of rank {clean(layer['rank'])}" if layer.get("rank") else ""
    rounding = f"{clean(layer['rounding'])} " if layer.get("rounding") else ""
    notes = [f"{rounding}{clean(layer['activations'])} inputs"] if layer.get("activations") else []
    notes += [name for name in ("centred", "scaled") if layer.get(name)]
    return clean(layer.get("format", "?")) + rank + (f" ({', '.join(notes)})" if notes else "")


def describe_calibration(about: dict[str, Any]) -> Iterator[str]:
    if about:
        values = {name: clean(about.get(name, "?")) for name in ("count", "samples", "steps", "guidance")}
        yield (
            f"  calibrated on {values['count']} edits of {values['samples']} at {values['steps']} steps, guidance "
            f"{values['guidance']} (digest {clean(about.get('digest', '?'))[:16]})"
        )


def describe_plan(plan: dict[str, Any]) -> Iterator[str]:
    """The memory plan of --fit: its budget, the edit that it is for, and the peak of every stage."""
    if not plan:
        return
    work = group(plan, "workload")
    edit = "x".join(clean(work.get(side, "?")) for side in ("width", "height"))
    yield (
        f"  planned for {size_of(plan.get('budget'))} on {clean(plan.get('target', '?'))}: peak "
        f"{size_of(plan.get('peak'))} at {edit}, references {clean(work.get('references', '?'))}, batch "
        f"{clean(work.get('batch', '?'))}"
    )
    peaks = [
        f"{clean(stage)} {size_of(group(plan['stages'], stage).get('peak'))}"
        for stage in group(plan, "stages")
    ]
    if peaks:
        yield f"    {', '.join(peaks)}"


def size_of(value: object) -> str:
    return human(value) if isinstance(value, (int, float)) else "?"


def describe_sampler(sampler: SamplerEntry) -> str:
    sigmas = sampler.sigmas
    shift = {
        "constant": f"shifted by {sigmas.shift:g}",
        "linear": "shifted by mu",
        "exponential": "shifted by e^mu",
    }[sigmas.time_shift]
    if sigmas.time_shift != "constant":
        shift += f" (mu {sampler.base_shift:g} to {sampler.max_shift:g})"
    spacing = "" if sigmas.spacing == SigmasEntry.spacing else f", spaced {sigmas.spacing}"
    terminal = "" if sigmas.terminal is None else f", the last {sigmas.terminal:g}"
    return (
        f"edits take {sampler.steps} steps at guidance {sampler.guidance:g}; sigmas {shift}{spacing}{terminal}; "
        f"several references by {sampler.reference_method}"
    )


def describe_engines(bundle: Bundle) -> Iterator[str]:
    """A line for each architecture and version of a library."""
    groups: dict[tuple[str, str, str, str], list[EngineEntry]] = {}
    for entry in read_engines(bundle):
        groups.setdefault((entry.target, entry.library, entry.version, entry.platform), []).append(entry)
    for (target, library, version, platform), entries in sorted(groups.items()):
        names = [entry.path.relative_to(bundle.folder).as_posix() for entry in entries]
        current = {
            entry.graph
            for entry in entries
            if entry.graph_sha256 == bundle.files[f"{bundle.graphs[entry.graph].path.name}"].sha256
        }
        notes = [
            f"{len(current)} of {len(bundle.graphs)} graphs",
            "/".join(sorted({entry.precision for entry in entries})),
            f"weights {'/'.join(sorted({entry.weights for entry in entries}))}",
            human(sum(bundle.files[name].size for name in names)),
        ]
        yield (
            f"  engines for {target} by {LIBRARIES[library].title} {clean(version)} on {clean(platform)}: "
            f"{', '.join(notes)}{damage(bundle, names)}"
        )


def describe_kernels(bundle: Bundle) -> Iterator[str]:
    """A line for each architecture."""
    groups: dict[str, list[str]] = {}
    for name in bundle.files:
        if name.startswith("kernels/"):
            groups.setdefault(name.split("/")[1], []).append(name)
    for architecture, names in sorted(groups.items()):
        count = sum(name.endswith(".cubin") for name in names)
        size = sum(bundle.files[name].size for name in names)
        yield f"  kernels for {architecture}: {count}, {human(size)}{damage(bundle, names)}"


def damage(bundle: Bundle, names: list[str]) -> str:
    """How many of these files are missing or have another size, and what to do about it."""
    damaged = [name for name in names if name in bundle.damaged]
    return f"; {len(damaged)} of {len(names)} files are damaged: {remedy(damaged[0])}" if damaged else ""
