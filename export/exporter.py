"""Makes a bundle from a checkpoint: OUT.partial is filled file by file, then renamed to OUT in one step.

A journal in OUT.partial says what is finished, so a killed export goes on where it was.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import KontextError
from ..model.checkpoint import Checkpoint, Origin
from ..model.lora import LoraFile
from ..quant.recipe import Recipe
from ..quant.statistics import Statistics
from ..runtime.bundle import FORMAT, MANIFEST_NAME, Bundle
from ..runtime.glibc_malloc import reused_memory
from .bundle.journal import Journal, fsync_folder, write_atomic
from .bundle.manifest import build_manifest, manifest_bytes
from .bundle.output_folder import Kind, check_output, publish
from .bundle.tokenizer_files import TokenizerFile, clip_file, t5_file
from .calibration.calibrate import calibrate
from .calibration.samples import Samples
from .graph import bind_weights
from .graph import link_weights as linking
from .graph.fp8_attention import quantize_attention
from .graph.interface import constants, linear_weights
from .graph.workers import Tracers
from .progress import Progress
from .weights.plan import WeightPlan, plan_weights
from .weights.write import write_weights

if TYPE_CHECKING:
    from ..kernels.variants import Sizes

SPARE_BYTES = 16 << 20
"""Room on the disk for what is not weights: graphs, tokenizers, manifest."""


@dataclass
class Summary:
    """What an export did, for whoever asked for it."""

    output: Path
    name: str
    parameters: int
    recipe: Recipe
    loras: Sequence[LoraFile] = ()
    linked: int = 0
    """Bytes of weights that stay in the checkpoint's own files."""
    sizes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)
    calibration: Mapping[str, object] = field(default_factory=dict)
    """What weights were calibrated on; empty if they were not."""
    notes: list[str] = field(default_factory=list)
    """What the user should know of."""


def export(
    model: Origin | Path,
    output: Path,
    choose_recipe: Callable[[Checkpoint], Recipe],
    force: bool = False,
    show_progress: bool = False,
    link_weights: bool = False,
    samples: Samples | None = None,
    kernels: Sequence[int] = (),
    plan: Mapping[str, object] | None = None,
) -> Summary:
    """Exports the checkpoint `model` as the bundle `output`.

    Args:
        model: a diffusers folder or a file, or with all its particulars as an `Origin`.
        output: the bundle's folder; must not exist, unless `force` and it is a bundle with nothing else in
            it.
        choose_recipe: decides the number formats once the checkpoint's size is known.
        force: replace a bundle.
        show_progress: draw progress bars on stderr.
        link_weights: leave weights that need no conversion in the checkpoint's own files.
        samples: edits to calibrate quantization on; None to round every weight to the nearest.
        kernels: architectures to compile the torch backend's kernels for, 89 for sm_89.
        plan: the memory plan that the recipe is of, for the manifest.

    Raises:
        KontextError: the checkpoint is faulty, `output` is in the way, or the disk is full.
    """
    begin = time.perf_counter()
    output = output.absolute()
    if output.is_symlink():
        output = output.resolve()
    check_output(output, BUNDLE, force)
    checkpoint = Checkpoint.open(model)
    tokenizers = read_tokenizers(checkpoint)
    recipe = choose_recipe(checkpoint)
    summary = Summary(output, checkpoint.config.name, checkpoint.parameters(), recipe, checkpoint.loras)
    summary.seconds["checkpoint"] = time.perf_counter() - begin
    if kernels:
        kernel_sizes(
            checkpoint, recipe
        )  # a format that there are none for is refused before anything is written
    statistics = None
    if samples is not None and recipe.rules:
        begin_calibration = time.perf_counter()
        recipe = dataclasses.replace(recipe, calibration=samples.digest())
        statistics = calibrate(
            checkpoint, recipe, tokenizers, samples, Progress(show_progress), summary.notes.append
        )
        summary.recipe, summary.calibration = recipe, statistics.about
        summary.seconds["calibration"] = time.perf_counter() - begin_calibration
    layout = lay_out(checkpoint, recipe, link_weights, statistics)
    summary.linked = layout.linked_bytes()
    partial = output.with_name(output.name + ".partial")
    try:
        key = export_key(checkpoint, recipe, link_weights) | {"kernels": list(kernels)}
        with Journal.open(partial, key) as journal:
            try:
                fill(journal, checkpoint, recipe, layout, summary, Progress(show_progress))
                if kernels:
                    compile_kernels(journal, checkpoint, recipe, kernels, Progress(show_progress))
                finish(journal, checkpoint, recipe, layout, tokenizers, summary, plan)
            # the checkpoint or the disk has to change, and nothing made so far would fit
            except KontextError:
                journal.discard()
                raise
        (partial / Journal.NAME).unlink()
        publish(partial, output, BUNDLE, force)
    except OSError as fault:
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):
            raise KontextError(
                f"the disk is full: make room and run the same command again; {partial} keeps what is done"
            ) from None
        raise KontextError(f"cannot write {fault.filename or partial}: {fault.strerror}") from None
    summary.seconds["all"] = time.perf_counter() - begin
    return summary


@dataclass(frozen=True)
class Layout:
    """Where every weight will be: in the bundle's files (`plans`) or in the user's (`links`), which graphs know by the
    names in `locations`."""

    plans: dict[str, WeightPlan]
    links: dict[str, dict[str, linking.Link]]
    locations: dict[Path, str]
    statistics: Statistics
    """Of the calibration; empty without."""

    def linked_bytes(self) -> int:
        parts = {part for linked in self.links.values() for link in linked.values() for part in link.parts}
        return sum(part.stop - part.start for part in parts)


def lay_out(
    checkpoint: Checkpoint, recipe: Recipe, link_weights: bool, statistics: Statistics | None = None
) -> Layout:
    config = checkpoint.config
    statistics = statistics or Statistics()
    plans, links = {}, {}
    for name, network in checkpoint.networks.items():
        linears = linear_weights(name, config)
        links[name] = linking.linkable_weights(network, recipe, linears) if link_weights else {}
        plans[name] = plan_weights(
            network,
            recipe,
            linears,
            constants(name, config),
            links[name],
            statistics.inputs.get(name),
        )
    paths = {part.path for linked in links.values() for link in linked.values() for part in link.parts}
    return Layout(plans, links, linking.link_names(paths), statistics)


def export_key(checkpoint: Checkpoint, recipe: Recipe, link_weights: bool) -> dict[str, object]:
    """What an unfinished export must agree in to be gone on with; the weights by size, date and header."""
    return {
        "config": json.loads(json.dumps(dataclasses.asdict(checkpoint.config))),
        "loras": [[str(lora.path.absolute()), lora.weight] for lora in checkpoint.loras],
        "recipe": recipe.digest(),
        "linked": link_weights,
        "sources": checkpoint.identity(),
    }


def fill(
    journal: Journal,
    checkpoint: Checkpoint,
    recipe: Recipe,
    layout: Layout,
    summary: Summary,
    progress: Progress,
) -> None:
    """Writes weights, then graphs; weights first, since a damaged checkpoint shows there."""
    check_room(journal, sum(plan.size for plan in layout.plans.values()))
    for folder in ("weights", "tokenizers"):
        (journal.folder / folder).mkdir(exist_ok=True)
    untraced = [name for name in layout.plans if not journal.finished(graph_file(name))]
    with Tracers(untraced, checkpoint.config, recipe.compute) as tracers:
        begin = time.perf_counter()
        write_weight_files(journal, checkpoint, layout, summary, progress)
        summary.seconds["weights"] = time.perf_counter() - begin
        begin = time.perf_counter()
        with progress.steps("graphs", len(layout.plans)) as step:
            for name, plan in layout.plans.items():
                if name in untraced:
                    model = tracers.result(name)
                    if name == "transformer" and recipe.attention:
                        quantize_attention(model, checkpoint.config.transformer, layout.statistics)
                    linking.bind_links(model, layout.links[name], layout.locations)
                    bind_weights.bind(model, plan, weights_file(name))
                    journal.add(graph_file(name), bind_weights.serialize(model))
                else:
                    summary.resumed.append(graph_file(name))
                step(1)
        summary.seconds["graphs"] = time.perf_counter() - begin


def write_weight_files(
    journal: Journal, checkpoint: Checkpoint, layout: Layout, summary: Summary, progress: Progress
) -> None:
    for name, plan in layout.plans.items():
        file = weights_file(name)
        if journal.finished(file, plan.size):
            summary.resumed.append(file)
            continue
        with progress.bytes(f"{name} weights", plan.size) as advance, reused_memory():
            digest = write_weights(
                plan,
                checkpoint.networks[name],
                journal.folder / file,
                journal.synced(file),
                functools.partial(journal.mark, file),
                advance,
            )
        journal.finish(file, plan.size, digest)


def kernel_sizes(checkpoint: Checkpoint, recipe: Recipe) -> Sizes:
    from ..kernels.archive import sizes_of  # here, since most exports need none of it

    return sizes_of(dataclasses.asdict(checkpoint.config.transformer), recipe.compute["transformer"])


def compile_kernels(
    journal: Journal, checkpoint: Checkpoint, recipe: Recipe, architectures: Sequence[int], progress: Progress
) -> None:
    """Writes the torch backend's kernels, compiled for the transformer's sizes."""
    from ..kernels import archive

    sizes = kernel_sizes(checkpoint, recipe)
    for arch in architectures:
        folder = f"kernels/sm_{arch}"
        (journal.folder / folder).mkdir(parents=True, exist_ok=True)
        with progress.steps(f"kernels sm_{arch}", None) as step:
            for name, data in archive.archive(arch, sizes, advance=step):
                journal.add(f"{folder}/{name}", data)
        fsync_folder(journal.folder / folder)


def read_tokenizers(checkpoint: Checkpoint) -> dict[str, TokenizerFile]:
    config, folder = checkpoint.config, checkpoint.tokenizers
    clip, t5 = config.text_encoder, config.text_encoder_2
    return {
        "clip": clip_file(folder / "tokenizer", clip.max_length, clip.vocab_size),
        "t5": t5_file(folder / "tokenizer_2", t5.max_length, t5.vocab_size),
    }


def finish(
    journal: Journal,
    checkpoint: Checkpoint,
    recipe: Recipe,
    layout: Layout,
    tokenizers: dict[str, TokenizerFile],
    summary: Summary,
    plan: Mapping[str, object] | None,
) -> None:
    """Writes tokenizers and manifest: the last files."""
    for name, tokenizer in tokenizers.items():
        journal.add(f"tokenizers/{name}.json", tokenizer.text.encode())
    fsync_folder(journal.folder / "weights")
    fsync_folder(journal.folder / "tokenizers")
    manifest = build_manifest(checkpoint, recipe, tokenizers, journal.files)
    if layout.statistics.about:
        manifest["calibration"] = layout.statistics.about
    if plan is not None:
        manifest["plan"] = plan
    if layout.locations:
        manifest["links"] = linking.manifest_links(checkpoint, layout.locations)
    write_atomic(journal.folder / MANIFEST_NAME, manifest_bytes(manifest))
    Bundle.open(journal.folder)  # what the runtime would refuse is not published
    summary.sizes = {name: entry["size"] for name, entry in journal.files.items()}


def weights_file(network: str) -> str:
    return f"weights/{network}.safetensors"


def graph_file(network: str) -> str:
    return f"{network}.onnx"


def bundle_files(folder: Path) -> set[str] | None:
    """The files of the bundle at `folder`, or None where its manifest does not say it is one."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return None
        return {MANIFEST_NAME, *manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


BUNDLE = Kind("bundle", "bundle", bundle_files)


def check_room(journal: Journal, needed: int) -> None:
    """Refuses to begin what cannot end; what an earlier run left in OUT.partial counts as free."""
    there = sum(path.stat().st_size for path in journal.folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(journal.folder).free
    if free + there < needed + SPARE_BYTES:
        raise KontextError(
            f"not enough room on the disk: the bundle needs {needed / 1e9:.2f} GB, "
            f"{journal.folder.parent} has {free / 1e9:.2f} GB free"
        )
