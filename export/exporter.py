"""Makes a bundle from a checkpoint, top to bottom: calibrate, lay out, write weights, graphs, kernels, tokenizers and
manifest, publish.

OUT.partial is filled file by file, then renamed to OUT. Its journal lists finished files, so a killed export resumes;
`bundle/output_folder.py` has the renames.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..bundle_folder import MANIFEST_NAME
from ..files import fsync, write_atomic
from ..model import lora_slots as slots
from ..model.checkpoint import Checkpoint
from ..model.lora.read import LoraFile
from ..model.networks import NETWORKS, linear_weights
from ..quant.recipe import BIG_MODEL, Recipe
from ..quant.statistics import Statistics
from ..runtime.bundle import Bundle
from ..runtime.digest import digest_of
from ..runtime.glibc_malloc import reused_memory
from ..runtime.links import remember_own
from .bundle.disk_space import check_disk_space, disk_errors
from .bundle.folder_kind import BUNDLE
from .bundle.journal import FinishedFile, Journal
from .bundle.manifest import (
    build_manifest,
    graph_file,
    manifest_bytes,
    precision,
    tokenizer_path,
    weights_file,
)
from .bundle.output_folder import check_free, locked_output, partial_folder, publish
from .bundle.preview_colours import preview_colours
from .bundle.tokenizer_files import TokenizerFile, read_tokenizers
from .calibration.calibrate import calibrate
from .edit_sets.samples import Samples
from .graph import bind_weights, interface
from .graph.fp8_attention import quantize_attention
from .graph.link_weights import (
    Link,
    bind_links,
    link_names,
    linkable_weights,
    manifest_links,
    why_copied,
)
from .graph.lora_inputs import add_lora_inputs
from .graph.workers import Tracers
from .kernels import compile_kernels, kernel_sizes
from .progress import Progress
from .weights.plan import WeightPlan, check_reached, plan_weights
from .weights.write import weight_stream, write_stream

if TYPE_CHECKING:
    from ..kernels.variants import Sizes


@dataclass(frozen=True)
class Summary:
    """What an export did."""

    output: Path
    name: str
    parameters: int
    recipe: Recipe
    sizes: Mapping[str, int]
    """File → bytes, of every file but the manifest."""
    seconds: Mapping[str, float]
    """Of "calibration", "weights", "graphs" and "all"."""
    loras: Sequence[LoraFile] = ()
    ignored: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Component → its tensors that no network uses, counted by kind."""
    linked: int = 0
    """Bytes of weights that stay in the checkpoint's own files."""
    linked_weights: int = 0
    copied_weights: Mapping[str, int] = field(default_factory=dict)
    """With --link-weights: why weights were copied → how many."""
    resumed: Sequence[str] = ()
    """Files that an earlier, unfinished export had written."""
    calibration: Statistics = field(default_factory=Statistics)
    """Empty if weights were rounded to nearest."""
    skipped_samples: Sequence[str] = ()
    """Calibration pictures that could not be used, and why."""
    steps: str = ""
    """The bundle's default steps and where they come from."""
    digest: str = ""
    """What pins the bundle, as `kontext-export digest` prints it."""


def export(
    checkpoint: Checkpoint,
    recipe: Recipe,
    output: Path,
    *,
    samples: Samples | None = None,
    link_weights: bool = False,
    kernels: Sequence[int] = (),
    plan: Mapping[str, object] | None = None,
    reference_method: str | None = None,
    lora_slots: int = 0,
    force: bool = False,
    show_progress: bool = False,
) -> Summary:
    """Exports a checkpoint as the bundle `output`.

    Args:
        checkpoint: the model.
        recipe: the number format of every weight.
        output: the bundle's folder; must not exist, unless `force` and it is a bundle and holds nothing else.
        samples: edits to calibrate quantization on; None rounds every weight to nearest.
        link_weights: leave weights that need no conversion in the checkpoint's own files.
        kernels: compute capabilities to compile the torch backend's kernels for, 89 for sm_89.
        plan: the memory plan that `recipe` comes from, for the manifest.
        reference_method: how edits place several references, for the manifest; None: what suits the model's shape.
        lora_slots: the highest rank, in all, of LoRAs that an edit may bring; 0: none.
        force: replace an existing bundle.
        show_progress: draw progress bars on stderr.

    Raises:
        KontextError: the checkpoint is damaged, `output` is in the way, another process exports to it, the kernels do
            not support the model, or the disk is full. All but the last are raised before anything is written.
    """
    begin = time.perf_counter()
    progress = Progress(show_progress)
    with locked_output(output, BUNDLE) as output, contextlib.ExitStack() as stack:
        check_free(output, BUNDLE, force)
        if kernels:
            checkpoint_sizes(checkpoint, recipe)
        tokenizers = read_tokenizers(checkpoint)
        if samples is not None and recipe.rules:
            recipe = dataclasses.replace(recipe, calibration=samples.digest())
        key = resume_key(checkpoint, recipe, link_weights, kernels, lora_slots)
        published = Journal.of_published(output, key, BUNDLE)
        if published is None:
            check_free(output, BUNDLE, force)  # again: it was free if it were this export's
        partial = partial_folder(output)
        tracers: Tracers | None = None
        if published is None and not partial.exists() and checkpoint.parameters() < BIG_MODEL:
            # Beside the calibration. That of a large model takes hours, and all memory that there is.
            tracers = stack.enter_context(Tracers(tuple(NETWORKS), checkpoint.config, recipe.compute))

        statistics = Statistics()
        if samples is not None and recipe.rules:
            statistics = calibrate(checkpoint, recipe, tokenizers, samples, progress)
        calibrated = time.perf_counter()
        layout = lay_out(checkpoint, recipe, statistics, link_weights)
        check_reached(layout.plans.values())
        manifest_of = functools.partial(
            build_manifest,
            checkpoint,
            recipe,
            tokenizers,
            calibration=layout.statistics.about,
            plan=plan,
            links=linked_files(checkpoint, layout, progress),
            preview=functools.cache(functools.partial(preview_colours, checkpoint)),
            reference_method=reference_method,
            lora_slots=slots.manifest_entry(checkpoint.config, lora_slots) if lora_slots else None,
        )
        with disk_errors(partial):
            if published is not None and is_manifest(output, manifest_of(files=published.files)):
                written = Written(published.files, finished_files(published, layout), calibrated, calibrated)
            else:
                check_free(output, BUNDLE, force)
                check_disk_space(partial, layout.size, BUNDLE)
                with Journal.open(partial, key, BUNDLE) as journal:
                    written = write_files(
                        journal,
                        checkpoint,
                        recipe,
                        tokenizers,
                        layout,
                        kernels,
                        lora_slots,
                        manifest_of,
                        tracers,
                        progress,
                    )
                publish(partial, output, BUNDLE, force)

    return Summary(
        output,
        checkpoint.config.name,
        checkpoint.parameters(),
        recipe,
        sizes={name: entry["size"] for name, entry in written.files.items()},
        seconds={
            "calibration": calibrated - begin,
            "weights": written.weights_at - calibrated,
            "graphs": written.graphs_at - written.weights_at,
            "all": time.perf_counter() - begin,
        },
        loras=checkpoint.loras,
        ignored=checkpoint.ignored,
        linked=layout.linked_bytes(),
        linked_weights=sum(map(len, layout.links.values())),
        copied_weights=layout.copied,
        resumed=written.resumed,
        calibration=statistics,
        skipped_samples=() if samples is None else samples.skipped,
        steps=f"{checkpoint.config.sampler.steps} steps by default, from {checkpoint.steps_source}",
        digest=digest_of(manifest_bytes(manifest_of(files=written.files))),
    )


@dataclass(frozen=True)
class Layout:
    """Where every weight goes: network → what its file in the bundle holds (`plans`) and what stays in the user's files
    (`links`), which graphs know by the names in `locations`."""

    plans: Mapping[str, WeightPlan]
    links: Mapping[str, Mapping[str, Link]]
    locations: Mapping[Path, str]
    statistics: Statistics
    """Of calibration; empty without."""
    copied: Mapping[str, int]
    """With --link-weights: why weights are copied → how many."""

    @property
    def size(self) -> int:
        """Bytes of the bundle's weights."""
        return sum(plan.size for plan in self.plans.values())

    def linked_bytes(self) -> int:
        parts = {part for linked in self.links.values() for link in linked.values() for part in link.parts}
        return sum(part.stop - part.start for part in parts)


def lay_out(checkpoint: Checkpoint, recipe: Recipe, statistics: Statistics, link_weights: bool) -> Layout:
    """Gives every weight its place; reads none."""
    plans, links = {}, {}
    copied: Counter[str] = Counter()
    for name, network in checkpoint.networks.items():
        linears = linear_weights(name, checkpoint.config)
        constants = interface.constants(name, checkpoint.config)
        links[name] = linkable_weights(network, recipe, linears) if link_weights else {}
        if link_weights:
            copied.update(why_copied(network, recipe, linears, weight) for weight in network.sources)
        plans[name] = plan_weights(
            network, recipe, linears, constants, links[name], statistics.inputs.get(name)
        )
    paths = {part.path for linked in links.values() for link in linked.values() for part in link.parts}
    del copied[""]  # those that are linked
    return Layout(plans, links, link_names(paths), statistics, copied)


def resume_key(
    checkpoint: Checkpoint, recipe: Recipe, link_weights: bool, kernels: Sequence[int], lora_slots: int = 0
) -> dict[str, object]:
    """What an unfinished export must agree in to be resumed."""
    return {
        **checkpoint.key(),
        "recipe": recipe.digest(),
        "linked": link_weights,
        "kernels": list(kernels),
        "lora_slots": lora_slots,
    }


@dataclass(frozen=True)
class Written:
    """A whole OUT.partial: its files but for the manifest, and when weights and graphs were finished
    (`time.perf_counter`)."""

    files: Mapping[str, FinishedFile]
    resumed: Sequence[str]
    """Of them, weights and graphs that an earlier run had written."""
    weights_at: float
    graphs_at: float


def write_files(
    journal: Journal,
    checkpoint: Checkpoint,
    recipe: Recipe,
    tokenizers: Mapping[str, TokenizerFile],
    layout: Layout,
    kernels: Sequence[int],
    lora_slots: int,
    manifest_of: Callable[..., dict[str, object]],
    tracers: Tracers | None,
    progress: Progress,
) -> Written:
    """Writes what an earlier run has not. `manifest_of` makes the manifest of its `files`; `tracers` are those that are
    at work already."""
    resumed = finished_files(journal, layout)
    untraced = [name for name in layout.plans if graph_file(name) not in resumed]
    # Weights first: they show whether the checkpoint is damaged, and tracing runs beside them.
    with (
        Tracers(untraced, checkpoint.config, recipe.compute)
        if tracers is None
        else contextlib.nullcontext(tracers)
    ) as at_work:
        write_weight_files(journal, checkpoint, layout, resumed, progress)
        weights_at = time.perf_counter()
        write_graphs(journal, checkpoint, recipe, layout, untraced, at_work, lora_slots > 0, progress)
        graphs_at = time.perf_counter()
    write_kernels(journal, checkpoint, recipe, kernels, progress)
    write_tokenizers(journal, tokenizers)
    write_manifest(journal, manifest_of(files=journal.files))
    return Written(journal.files, resumed, weights_at, graphs_at)


def finished_files(journal: Journal, layout: Layout) -> list[str]:
    """Weights and graphs that an earlier run finished."""
    weights = {weights_file(name): plan.size for name, plan in layout.plans.items()}
    graphs = dict.fromkeys(map(graph_file, layout.plans))
    return [file for file, size in {**weights, **graphs}.items() if journal.finished(file, size)]


def write_weight_files(
    journal: Journal, checkpoint: Checkpoint, layout: Layout, finished: Collection[str], progress: Progress
) -> None:
    """Streams every network's weights into its file, from where an earlier run was stopped."""
    for name, plan in layout.plans.items():
        file = weights_file(name)
        if file in finished:
            continue
        path = journal.folder / file
        path.parent.mkdir(exist_ok=True)
        with progress.bytes(f"{name} weights", plan.size) as advance, reused_memory():
            digest = write_stream(
                weight_stream(plan, checkpoint.networks[name]),
                path,
                journal.synced(file),
                functools.partial(journal.mark, file),
                advance,
            )
        journal.finish(file, plan.size, digest)


def write_graphs(
    journal: Journal,
    checkpoint: Checkpoint,
    recipe: Recipe,
    layout: Layout,
    networks: Sequence[str],
    tracers: Tracers,
    with_slots: bool,
    progress: Progress,
) -> None:
    """Binds the traced graphs of `networks` to their weights and writes them, `with_slots` for LoRAs."""
    with progress.steps("graphs", len(networks)) as advance:
        for name in networks:
            model = tracers.result(name)
            if name == "transformer" and recipe.attention:
                quantize_attention(model, checkpoint.config.transformer, layout.statistics)
            if with_slots and name in slots.NETWORKS:
                add_lora_inputs(model, slots.network_slots(name, checkpoint.config))
            bind_links(model, layout.links[name], layout.locations)
            bind_weights.bind(model, {weights_file(name): layout.plans[name]}, for_gpu=recipe.is_for_gpus)
            journal.add(graph_file(name), bind_weights.serialize(model))
            advance(1)


def write_kernels(
    journal: Journal, checkpoint: Checkpoint, recipe: Recipe, architectures: Sequence[int], progress: Progress
) -> None:
    """Writes the torch backend's kernels, compiled for the transformer's sizes and each of `architectures`."""
    for arch in architectures:
        for name, data in compile_kernels(arch, checkpoint_sizes(checkpoint, recipe), progress).items():
            journal.add(name, data)


def checkpoint_sizes(checkpoint: Checkpoint, recipe: Recipe) -> Sizes:
    """The sizes to compile kernels for. Raises KontextError for a number format that has no kernels."""
    return kernel_sizes(dataclasses.asdict(checkpoint.config.transformer), precision(checkpoint, recipe))


def write_tokenizers(journal: Journal, tokenizers: Mapping[str, TokenizerFile]) -> None:
    for name, tokenizer in tokenizers.items():
        journal.add(tokenizer_path(name), tokenizer.text.encode())


def linked_files(checkpoint: Checkpoint, layout: Layout, progress: Progress) -> dict[str, dict[str, object]]:
    """The manifest's entries for the user's files that graphs take weights from, which are read whole."""
    size = sum(path.stat().st_size for path in layout.locations)
    with progress.bytes("digests of linked weights", size) as advance:
        return manifest_links(checkpoint, layout.locations, advance)


def write_manifest(journal: Journal, manifest: Mapping[str, object]) -> None:
    """Writes the manifest, the last file, and checks that the runtime would open the bundle."""
    for folder in {journal.folder / parent for name in journal.files for parent in Path(name).parents}:
        fsync(folder)
    write_atomic(journal.folder / MANIFEST_NAME, manifest_bytes(manifest))
    bundle = Bundle.open(journal.folder)
    for graph in bundle.graphs:
        bundle.graph_bytes(graph)
    if bundle.links:
        remember_own(bundle.digest)


def is_manifest(folder: Path, manifest: Mapping[str, object]) -> bool:
    """Whether `manifest` is the one of the bundle in `folder`."""
    return (folder / MANIFEST_NAME).read_bytes() == manifest_bytes(manifest)
