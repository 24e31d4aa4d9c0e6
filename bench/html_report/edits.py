"""The edits of a result as the report shows them: prompt, category, pictures by name, and what was measured of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import KontextError
from ..fidelity.picture_metrics import METRICS
from ..pictures import OUTPUTS, REFERENCE, SOURCE, named_folder
from ..registry import Result
from ..result_file import in_words


@dataclass(frozen=True)
class Output:
    """What one bundle or peer made of an edit; `metrics` by their names, `accepted` by the judge."""

    entry: str
    title: str
    picture: str
    metrics: dict[str, float] = field(default_factory=dict)
    accepted: bool | None = None


@dataclass(frozen=True)
class Edit:
    """An edit with its pictures' names in `folder`; text alone has no source, and a demo no reference."""

    number: int
    key: str
    category: str
    prompt: str
    folder: Path
    source: str | None
    reference: str | None
    outputs: tuple[Output, ...]
    reference_accepted: bool | None = None

    def worst(self, metric: str = "psnr") -> float:
        """Its lowest value; an edit without one is the best."""
        return min((each.metrics[metric] for each in self.outputs if metric in each.metrics), default=1e9)


def read_edits(result: Result, file: Path, titles: dict[str, str]) -> list[Edit]:
    """The edits whose pictures the result names; none if it names none. `titles` are those of bundles and peers.

    Raises:
        KontextError: the names are not as `bench.pictures` writes them, or lead out of the result's folder.
    """
    named = result.get("pictures")
    if named is None:
        return []
    try:
        folder = named_folder(file, named["folder"])
        entries = {**result.get("bundles", {}), **result.get("peers", {})}
        whole = result.get("reference", {}).get("success_each")
        return [
            Edit(
                number,
                str(at(result.get("keys"), number) or number + 1),
                str(at(result.get("kinds"), number) or ""),
                str(at(result.get("prompts"), number) or ""),
                folder,
                pictures.get(SOURCE),
                pictures.get(REFERENCE),
                tuple(
                    output(name, titles.get(name, name), picture, entries.get(name, {}), number)
                    for name, picture in pictures[OUTPUTS].items()
                ),
                at(whole, number),
            )
            for number, pictures in enumerate(named["edits"])
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as fault:
        raise KontextError(
            f"{file} does not name its pictures as kontext-bench does ({in_words(fault)})"
        ) from None


def output(name: str, title: str, picture: str, entry: dict[str, Any], number: int) -> Output:
    metrics = {
        metric: float(value)
        for metric in METRICS
        if (value := at(entry.get(f"{metric}_each"), number)) is not None
    }
    return Output(name, title, picture, metrics, at(entry.get("success_each"), number))


def at(values: Sequence[Any] | None, place: int) -> Any:
    """values[place], None where there is none."""
    return values[place] if values is not None and place < len(values) else None
