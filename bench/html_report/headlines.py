"""The page's first lines: what each result says in one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..fidelity.tables import titles
from ..registry import Result
from .loaded import Loaded
from .markup import Html, element

MIB = 2**20
PEER = "diffusers"
LOSSLESS = 199


@dataclass(frozen=True)
class Headline:
    """A number with its unit, and what it is of."""

    number: str
    words: str


def headlines_html(results: Sequence[Loaded]) -> Html:
    found = [line for each in results if each.what in MAKERS for line in MAKERS[each.what](each.result)]
    if len(found) < 2:
        return Html("")
    return element(
        "ul",
        *(element("li", element("b", each.number), element("span", each.words)) for each in found[:6]),
        class_="headlines",
    )


def times_less(ours: float, theirs: float) -> str:
    if theirs > ours > 0:
        return f"{theirs / ours:.1f}× less than {PEER}"
    return f"{ours / theirs:.1f}× as much as {PEER}"


def latency(result: Result) -> list[Headline]:
    ours, theirs = (result["sides"].get(side, {}).get("edit", {}).get("median") for side in ("kontext", PEER))
    peaks = [result["peak_bytes"].get(side) for side in ("kontext", PEER)]
    width, height = result["size"]
    against = f", {times_less(ours, theirs)}" if theirs else ""
    beside = f", {times_less(peaks[0], peaks[1])}" if peaks[1] else ""
    return [
        Headline(f"{ours * 1000:.0f} ms", f"an edit of {result['steps']} steps at {width}×{height}{against}"),
        Headline(f"{peaks[0] / MIB:.0f} MiB", f"peak memory of an edit{beside}"),
    ]


def cold_start(result: Result) -> list[Headline]:
    ours = next(iter(result["sides"].values()))["seconds"]["median"]
    theirs = result["sides"].get(PEER, {}).get("seconds", {}).get("median")
    against = f", {times_less(ours, theirs)}" if theirs else ""
    return [Headline(f"{ours:.2f} s", f"from process start to PNG{against}")]


def fidelity(result: Result) -> list[Headline]:
    """The smallest of our bundles, and the one that is closest to the reference."""
    names = titles(result)
    ours = {
        name: entry
        for name, entry in result["bundles"].items()
        if entry["bits_per_weight"] is not None and entry["velocity_snr"] < LOSSLESS
    }
    if not ours:
        return []
    chosen = [
        min(ours, key=lambda name: (ours[name]["bits_per_weight"], -ours[name]["psnr"])),
        max(ours, key=lambda name: ours[name]["psnr"]),
    ]
    return [
        Headline(
            f"{ours[name]['psnr']:.1f} dB",
            f"PSNR of the pictures of {names[name]}, {ours[name]['bits_per_weight']:.1f} bits a weight",
        )
        for name in dict.fromkeys(chosen)
    ]


def success(result: Result) -> list[Headline]:
    steps, counts = next(iter(result["successes"].items()))
    share = sum(counts.values()) / (len(counts) * result["count"])
    return [
        Headline(
            f"{share:.0%}", f"of {len(counts) * result['count']} held-out edits succeed in {steps} steps"
        )
    ]


def serving(result: Result) -> list[Headline]:
    level = max(result["levels"], key=lambda each: each["per_second"])
    return [
        Headline(
            f"{level['per_second']:.1f}", f"edits a second on a server with {level['concurrency']} callers"
        )
    ]


MAKERS: dict[str, Callable[[Result], list[Headline]]] = {
    "latency": latency,
    "cold start": cold_start,
    "fidelity": fidelity,
    "success of edits": success,
    "serving": serving,
}
