"""What `kontext-export` prints when it is done: sizes, time, peak memory, and what to run next."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...errors import one_line
from ...model.few_steps import weight_note
from ...model.ignored import describe
from ...model.layouts import TITLES
from ...runtime.backends.runnable import Formats

if TYPE_CHECKING:
    from ...model.lora.read import LoraFile
    from ...quant.statistics import Statistics
    from ..exporter import Summary


def peak_memory() -> int:
    """Peak resident memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def human(size: float) -> str:
    """Bytes with a unit: 999 B, 1.5 kB, 24.0 MB, 23.80 GB."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def counted(number: int, what: str) -> str:
    """As "1 tensor" or "2 tensors"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def millions(parameters: int) -> str:
    """As "11,901.4 M parameters", or "448 parameters" where millions would be 0."""
    return (
        f"{parameters / 1e6:,.1f} M parameters" if parameters >= 50_000 else counted(parameters, "parameter")
    )


def calibration_notes(statistics: Statistics | None, skipped: Sequence[str]) -> list[str]:
    """Lines about a calibration: pictures that were skipped, and the cache if it was used."""
    notes = [f"not used for calibration: {line}" for line in skipped]
    if statistics is not None and statistics.file is not None:
        notes.append(f"calibration taken from {statistics.file}")
    return notes


def render_summary(summary: Summary, run: str = "") -> str:
    """The summary as lines of text; `run` are flags of kontext-edit that a plan counts on."""
    recipe, sizes, seconds, about = summary.recipe, summary.sizes, summary.seconds, summary.calibration.about
    compute = recipe.compute["transformer"]
    parameters = f"{summary.parameters / 1e6:,.1f} M parameters"
    lines = [f"{summary.name}: {parameters}, {recipe.weights} weights, {compute} compute"]
    lines += [f"  {network} computes in {own}" for network, own in recipe.compute.items() if own != compute]
    if about:
        lines.append(
            f"  calibrated on {about['count']} edits of {about['samples']} at {about['steps']} steps"
        )
        lines += [f"  {note}" for note in calibration_notes(summary.calibration, summary.skipped_samples)]
    lines += lora_lines(summary.loras)
    if summary.steps:
        lines.append(f"  {summary.steps}")
    lines += ignored_lines(summary.ignored)
    lines += size_lines(sizes)
    if summary.linked_weights or summary.copied_weights:
        lines.append(f"  {link_line(summary)}")
    if summary.resumed:
        lines.append(f"  from an earlier, unfinished export: {', '.join(summary.resumed)}")
    calibration = f"calibration {seconds['calibration']:.1f} s, " if about else ""
    lines.append(
        f"{seconds['all']:.1f} s ({calibration}weights {seconds['weights']:.1f} s, graphs {seconds['graphs']:.1f} s), "
        f"peak memory {human(peak_memory())}"
    )
    lines += [digest_line(summary.digest)] if summary.digest else []
    return "\n".join(map(one_line, [*lines, *next_lines(summary, run)]))


def lora_lines(loras: Sequence[LoraFile]) -> list[str]:
    """What was fused, and what was left out of it."""
    lines = []
    for lora in loras:
        lines.append(f"  with {lora.name} at {lora.weight:g}: {lora.updates} updates")
        if lora.unmatched:
            lines.append(f"    left out, since no weight fits: {', '.join(lora.unmatched)}")
        lines += [f"    {note}" for note in lora.notes]
        if note := weight_note(lora.path, lora.weight):
            lines.append(f"    {note}")
    return lines


def ignored_lines(ignored: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Tensors of the checkpoint's components that no network uses."""
    return [f"  {describe(TITLES[component], kinds)}" for component, kinds in ignored.items()]


def size_lines(sizes: Mapping[str, int]) -> list[str]:
    """Files with their bytes, and the sum."""
    lines = [f"  {name:<36} {human(size):>10}" for name, size in sorted(sizes.items())]
    return [*lines, f"  {'total':<36} {human(sum(sizes.values())):>10}"]


def digest_line(digest: str) -> str:
    """What pins a bundle, for those who copy it to where it is used."""
    return f"digest {digest}"


def link_line(summary: Summary) -> str:
    """What --link-weights linked and copied, and why."""
    copied = sum(summary.copied_weights.values())
    size = sum(size for name, size in summary.sizes.items() if name.startswith("weights/"))
    line = (
        f"--link-weights: {summary.linked_weights:,} weights linked ({human(summary.linked)}), {copied:,} copied "
        f"({human(size)})"
    )
    reasons = sorted(summary.copied_weights.items(), key=lambda each: -each[1])
    return line + (": " if reasons else "") + ", ".join(f"{count:,} {reason}" for reason, count in reasons)


def next_lines(summary: Summary, run: str = "") -> list[str]:
    """A command that runs the bundle on this machine, where PyTorch is installed, or with the flags `run` on the card
    that it was planned for."""
    recipe = summary.recipe
    formats = Formats(
        frozenset(recipe.compute.values()),
        frozenset(rule.format for rule in recipe.rules),
        linked=summary.linked_weights > 0,
    )
    begin = f"The bundle is {summary.output}. "
    command = f'  kontext-edit {summary.output} -i in.png --prompt "make the circle red" -o out.png'
    if run:
        return [f"{begin}Next, as planned:", f"{command} {run}"]
    if not formats.missing("cpu") or not formats.linked:  # PyTorch runs what ONNX Runtime does not
        return [f"{begin}Next:", command]
    if not formats.missing("cuda"):
        return [f"{begin}Next, on an NVIDIA GPU ({formats.refusal('cpu')}):", f"{command} --device cuda"]
    return [f"{begin}Nothing here runs it: {formats.refusal('cpu')}"]
