"""What `kontext-export --engine` prints when it is done."""

from __future__ import annotations

from ..engines.build import FOLDER, EngineSummary


def render_engines(summary: EngineSummary) -> str:
    """A line for each architecture."""
    lines = []
    for target in dict.fromkeys(file.split("/")[1] for file in (*summary.built, *summary.reused)):
        built = [engine for file, engine in summary.built.items() if file.split("/")[1] == target]
        reused = sum(file.split("/")[1] == target for file in summary.reused)
        size, seconds = sum(engine["size"] for engine in built), sum(engine["seconds"] for engine in built)
        lines.append(
            f"{FOLDER}/{target}: {len(built)} built ({size / 1e6:.1f} MB, {seconds:.0f} s), {reused} reused"
        )
    return "\n".join(lines)
