"""What `kontext-export --to` prints when it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import one_line
from .summary import human, ignored_lines, lora_lines, millions, peak_memory, size_lines

if TYPE_CHECKING:
    from ..layouts.write import LayoutSummary


def render_layout_summary(summary: LayoutSummary) -> str:
    """The summary as lines of text."""
    layout = summary.layout
    named = f"{layout.name}:{summary.variant}" if summary.variant else layout.name
    lines = [f"{summary.name} as {named}: {millions(summary.parameters)}, {summary.precision[0]}"]
    lines += [f"  {line}" for line in summary.precision[1:]]
    lines += lora_lines(summary.loras)
    lines += ignored_lines(summary.ignored)
    lines += size_lines(summary.sizes)
    if summary.resumed:
        lines.append(f"  from an earlier, unfinished export: {', '.join(summary.resumed)}")
    lines.append(f"{summary.seconds:.1f} s, peak memory {human(peak_memory())}")
    return "\n".join(map(one_line, [*lines, layout.usage(summary.output)]))
