"""The first lines' numbers, by hand from small results."""

from __future__ import annotations

from pathlib import Path

from kontext.bench.html_report.headlines import MAKERS, headlines_html, times_less
from kontext.bench.html_report.loaded import Loaded
from kontext.bench.registry import Result


def said(result: Result) -> list[tuple[str, str]]:
    return [(each.number, each.words) for each in MAKERS[result["what"]](result)]


LATENCY = {
    "what": "latency",
    "steps": 4,
    "size": [128, 96],
    "sides": {"kontext": {"edit": {"median": 0.25}}, "diffusers": {"edit": {"median": 0.5}}},
    "peak_bytes": {"kontext": 100 * 2**20, "diffusers": 50 * 2**20},
}


def test_ratios() -> None:
    assert times_less(2, 5) == "2.5× less than diffusers"
    assert times_less(5, 2) == "2.5× as much as diffusers"


def test_latency_with_and_without_a_peer() -> None:
    assert said(LATENCY) == [
        ("250 ms", "an edit of 4 steps at 128×96, 2.0× less than diffusers"),
        ("100 MiB", "peak memory of an edit, 2.0× as much as diffusers"),
    ]
    alone = {**LATENCY, "sides": {"kontext": {"edit": {"median": 0.25}}}, "peak_bytes": {"kontext": 2**20}}
    assert said(alone) == [("250 ms", "an edit of 4 steps at 128×96"), ("1 MiB", "peak memory of an edit")]


def test_fidelity_names_the_smallest_and_the_closest() -> None:
    entry = {"velocity_snr": 20.0, "success_each": []}
    bundles = {
        "a": {**entry, "precision": "int8", "bits_per_weight": 8.25, "psnr": 58.0},
        "b": {**entry, "precision": "int4", "bits_per_weight": 4.5, "psnr": 43.0},
        "same": {**entry, "precision": "fp32", "bits_per_weight": 32.0, "psnr": 100.0, "velocity_snr": 200.0},
    }
    found = said({"what": "fidelity", "bundles": bundles})
    assert [number for number, _ in found] == ["43.0 dB", "58.0 dB"]
    assert found[0][1] == "PSNR of the pictures of kontext int4, 4.5 bits a weight"


def test_success_and_servers() -> None:
    result = {
        "what": "success of edits",
        "count": 10,
        "successes": {"28": {"add": 9, "move": 6}, "4": {"add": 0, "move": 0}},
    }
    assert said(result) == [("75%", "of 20 held-out edits succeed in 28 steps")]
    levels = [{"per_second": 3.0, "concurrency": 1}, {"per_second": 4.0, "concurrency": 8}]
    assert said({"what": "serving", "levels": levels}) == [
        ("4.0", "edits a second on a server with 8 callers")
    ]


def test_one_number_is_no_overview() -> None:
    file = Path("a.json")
    serving = {"what": "serving", "levels": [{"per_second": 3.0, "concurrency": 1}]}
    assert headlines_html([Loaded(file, "serving", serving, None)]) == ""
    assert headlines_html([Loaded(file, "latency", LATENCY, None)]).count("<li>") == 2
