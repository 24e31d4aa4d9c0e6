"""Which figures of a result are compared, by hand and on the committed results; every benchmark is covered or named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.bench.compare.figures import COMPARABLE, NOT_COMPARABLE, PICTURES, figures_of
from kontext.bench.fidelity.picture_metrics import METRICS
from kontext.bench.html_report.loaded import SUBCOMMAND_OF
from kontext.bench.registry import SUBCOMMANDS

RESULTS = Path(__file__).resolve().parents[3] / "bench/results"


def test_every_benchmark_is_covered_or_named() -> None:
    assert not set(COMPARABLE) & set(NOT_COMPARABLE)
    known = {SUBCOMMAND_OF.get(what, what) for what in (*COMPARABLE, *NOT_COMPARABLE)}
    assert {entry.name for entry in SUBCOMMANDS if entry.measures} == known


def test_every_metric_has_a_direction() -> None:
    """Of these, only FLIP and LPIPS are distances."""
    assert set(METRICS) < set(PICTURES)
    assert [name for name in METRICS if not PICTURES[name].more_is_better] == ["flip", "lpips"]


def test_figures_of_an_object_a_list_and_a_number() -> None:
    result = {
        "sides": {"kontext": {"step": {"samples": [2, 1]}, "edit": {"samples": [3]}}, "openvino": {}},
        "peak_bytes": {"kontext": 7, "openvino": None},
        "psnr_db": {"openvino": 89.5},
    }
    found = figures_of(result, COMPARABLE["latency"])
    assert list(found) == ["kontext, step", "kontext, edit", "kontext, peak memory", "openvino, agreement"]
    assert found["kontext, step"].samples == (2.0, 1.0)
    assert found["kontext, peak memory"].value == 7.0
    assert found["openvino, agreement"].kind.more_is_better


def test_lists_are_of_edits_and_keys_that_come_again_are_told_apart() -> None:
    entry = {"psnr_each": [1, None, 3], "success_each": [True, False, None], "bits_per_weight": 4.5}
    found = figures_of({"keys": ["a", "b", "a"], "bundles": {"int4": entry}}, COMPARABLE["fidelity"])
    assert found["int4, psnr"].paired == {"a": 1.0, "a (2)": 3.0}
    assert found["int4, success"].paired == {"a": 1.0, "b": 0.0}
    assert found["int4, bits per weight"].value == 4.5
    with pytest.raises(ValueError, match="argument 2 is longer"):
        figures_of({"keys": ["a"], "bundles": {"int4": entry}}, COMPARABLE["fidelity"])


def test_items_of_lists_have_names() -> None:
    levels = [{"concurrency": 4, "samples": [1]}, {"concurrency": 8, "samples": [2]}]
    assert list(figures_of({"levels": levels}, COMPARABLE["serving"])) == ["4, callers", "8, callers"]
    verdicts = {"28": {"add": [True], "move": [False, True]}}
    (figure,) = figures_of({"verdicts": verdicts}, COMPARABLE["success of edits"]).values()
    assert figure.name == "28, steps"
    assert figure.paired == {"add-0": 1.0, "move-0": 0.0, "move-1": 1.0}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_every_place_is_in_a_committed_result(path: Path) -> None:
    """With what results had before samples were kept filled in, and without the zeros that stood for unknown bytes."""
    result = json.loads(path.read_text())
    if result["what"] in NOT_COMPARABLE or result["what"] == "success of edits":
        return

    def filled(value: object) -> object:
        if isinstance(value, dict):
            median = value.get("median", value.get("p50"))
            added = {} if median is None else {"samples": [median]}
            return {**{name: filled(each) for name, each in value.items()}, **added}
        if value == 0 and isinstance(value, int) and not isinstance(value, bool):
            return None
        return [filled(each) for each in value] if isinstance(value, list) else value

    comparable = COMPARABLE[result["what"]]
    whole = filled(result)
    assert isinstance(whole, dict)
    if comparable.keys:
        whole.setdefault("keys", [str(number) for number in range(result["edits"])])
    found = figures_of(whole, comparable)
    labels = {place.label for place in comparable.places if place.label}
    missing = {label for label in labels if not any(name.split(", ")[-1] in label for name in found)}
    allowed = {"velocity_snr", "lpips", "clip", "dino", "success", "import, peak memory", "page", "agreement"}
    allowed.add("energy")  # where nothing counts it
    assert found
    assert missing <= allowed
