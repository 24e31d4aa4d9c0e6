"""Writes a model in a layout: plans its files, streams them into OUT.partial, and renames that, or its file, to OUT.

What an earlier, killed run has finished is kept, as in the export of a bundle.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import KontextError
from ...files import fsync
from ...model.checkpoint import Checkpoint
from ...model.layouts import TITLES
from ...model.lora.read import LoraFile
from ...model.networks import NETWORKS
from ...quant.recipe import Recipe
from ...runtime.glibc_malloc import reused_memory
from ..bundle.disk_space import check_disk_space, disk_errors
from ..bundle.journal import Journal
from ..bundle.manifest import TOOLKIT
from ..bundle.output_file import check_file_free, publish_file, published_file
from ..bundle.output_folder import check_free, locked_output, partial_folder, publish
from ..edit_sets.samples import Samples
from ..progress import Progress
from ..weights.write import Stream, write_stream
from .importance import measure
from .layout import FORMAT, MARKER, Layout, PlannedFile, layout_of
from .source import WeightSource


@dataclass(frozen=True)
class LayoutSummary:
    """What was written."""

    output: Path
    layout: Layout
    name: str
    parameters: int
    """Of the components that the layout holds."""
    recipe: Recipe
    variant: str
    sizes: Mapping[str, int]
    """File → bytes."""
    seconds: float
    loras: Sequence[LoraFile] = ()
    ignored: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """As in `exporter.Summary`."""
    precision: Sequence[str] = ()
    """As of `Layout`."""
    resumed: Sequence[str] = ()
    """Files that an earlier, unfinished run had written."""


def check_layout_output(layout: Layout, output: Path, force: bool) -> None:
    """Checks before the work that `output` can be written. Raises KontextError, which says what is in the way."""
    with locked_output(output, layout.kind) as path:
        if not layout.is_file:
            check_folder_free(path, layout, force)
        elif not is_unfinished(layout, path):
            check_file_free(path, layout.suffix, force)


def write_layout(
    checkpoint: Checkpoint,
    layout: Layout,
    recipe: Recipe,
    output: Path,
    *,
    variant: str = "",
    samples: Samples | None = None,
    force: bool = False,
    show_progress: bool = False,
) -> LayoutSummary:
    """Writes a checkpoint as `output`, in a layout.

    Args:
        checkpoint: the model.
        layout: of OUT.
        recipe: what networks compute in, and the number format of every weight.
        output: a file or folder; must not exist, unless `force` and it is one that this may replace.
        variant: of the layout.
        samples: edits that the layout's rounding is calibrated on; None: on none.
        force: replace what is there.
        show_progress: draw progress bars on stderr.

    Raises:
        KontextError: the checkpoint is damaged or has what the layout cannot hold, `output` is in the way, another
            process exports to it, or the disk is full.
    """
    begin = time.perf_counter()
    progress = Progress(show_progress)
    check_loras(checkpoint, layout)
    kind = layout.kind
    with locked_output(output, kind) as output:
        check_not_read(checkpoint, output)
        measured = None
        if samples is not None:
            recipe = dataclasses.replace(recipe, calibration=samples.digest())
            measured = functools.partial(measure, checkpoint, samples, progress)
        source = WeightSource(checkpoint, recipe, variant, measured)
        files = layout.plan(source)
        key = json.loads(
            json.dumps(
                {
                    **checkpoint.key(),
                    "layout": layout.name,
                    "variant": variant,
                    "recipe": recipe.digest(),
                    "toolkit": TOOLKIT,
                }
            )
        )
        partial = partial_folder(output)
        with disk_errors(partial):
            if layout.is_file:
                published = published_file(output, layout.file_name, key, kind)
            else:
                published = Journal.of_published(output, key, kind)
            if published is not None:
                written, resumed = published.files, list(published.files)
            else:
                if layout.is_file:
                    check_file_free(output, layout.suffix, force)
                else:
                    check_folder_free(output, layout, force)
                weights = [each.size for each in files.values() if isinstance(each, Stream)]
                check_disk_space(partial, sum(weights), kind)
                with Journal.open(partial, key, kind) as journal:
                    resumed = write_files(journal, files, progress)
                    if not layout.is_file:
                        write_marker(journal, checkpoint, layout, recipe)
                    written = journal.files
                if layout.is_file:
                    publish_file(partial, layout.file_name, output, kind)
                else:
                    publish(partial, output, kind, force)
    sizes = {name: entry["size"] for name, entry in written.items()}
    networks = [name for name, component in NETWORKS.items() if component in layout.components]
    return LayoutSummary(
        output,
        layout,
        checkpoint.config.name,
        sum(checkpoint.networks[name].parameters() for name in networks),
        recipe,
        variant,
        {output.name: sizes[layout.file_name]} if layout.is_file else sizes,
        time.perf_counter() - begin,
        checkpoint.loras,
        {part: kinds for part, kinds in checkpoint.ignored.items() if part in layout.components},
        [f"{recipe.weights} weights"] if layout.precision is None else layout.precision(source),
        [output.name] if layout.is_file and resumed else resumed,
    )


def check_folder_free(output: Path, layout: Layout, force: bool) -> None:
    """As `check_free`, which does not say what a folder of another layout is."""
    found = layout_of(output)
    if found not in (None, layout.name):
        raise KontextError(
            f"{output} is a folder of the layout {found}, as its {MARKER} says, which --to {layout.name} does not "
            "replace: choose another folder"
        )
    check_free(output, layout.kind, force)


def is_unfinished(layout: Layout, output: Path) -> bool:
    """Whether an export of this layout may have been killed just after it renamed its file to `output`: then it is
    `published_file` that says what to do."""
    partial = partial_folder(output)
    return partial.is_dir() and not (partial / layout.file_name).exists()


def check_loras(checkpoint: Checkpoint, layout: Layout) -> None:
    """Raises KontextError for a LoRA that changes a component that the layout does not hold."""
    for name, network in checkpoint.networks.items():
        component = NETWORKS[name]
        if network.updates and component not in layout.components:
            lora = next(iter(network.updates.values()))[0].path
            held = " and ".join(TITLES[each] for each in layout.components)
            raise KontextError(
                f"{lora} changes {TITLES[component]}, and --to {layout.name} holds nothing but {held}: leave the LoRA "
                "out, or choose another layout"
            )


def check_not_read(checkpoint: Checkpoint, output: Path) -> None:
    """Raises KontextError if `output` is, or holds, one of the files that the model is read from."""
    real = output.resolve()
    for path in (*checkpoint.files, *([checkpoint.tokenizers] if checkpoint.tokenizers is not None else [])):
        if path.resolve() == real or real in path.resolve().parents:
            raise KontextError(f"{output} is what the model is read from: choose another name")


def write_files(journal: Journal, files: Mapping[str, PlannedFile], progress: Progress) -> list[str]:
    """Writes what an earlier run has not; returns the files with weights that it had finished."""
    resumed = []
    for name, planned in files.items():
        path = journal.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(planned, Stream):
            journal.add(name, planned())
        elif journal.finished(name, planned.size):
            resumed.append(name)
        else:
            with progress.bytes(name, planned.size) as advance, reused_memory():
                mark = functools.partial(journal.mark, name)
                digest = write_stream(planned, path, journal.synced(name), mark, advance)
            journal.finish(name, planned.size, digest)
    return resumed


def write_marker(journal: Journal, checkpoint: Checkpoint, layout: Layout, recipe: Recipe) -> None:
    """Writes the folder's list of files, which comes last."""
    for folder in {journal.folder / parent for name in journal.files for parent in Path(name).parents}:
        fsync(folder)
    record: dict[str, object] = {
        "format": FORMAT,
        "layout": layout.name,
        "toolkit": TOOLKIT,
        "source": dict(checkpoint.source),
        "loras": [{"file": lora.name, "weight": lora.weight} for lora in checkpoint.loras],
        "precision": {"weights": recipe.weights, "networks": recipe.compute},
        "files": {name: entry for name, entry in journal.files.items() if name != MARKER},
    }
    journal.add(MARKER, (json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())
