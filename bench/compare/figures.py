"""Which figures of a result can be compared, and what has to be the same: a table of all benchmarks.

A figure's place is a path into the JSON: `*` stands for every entry, `[name]` for every item of a list, by what
it calls itself. What is found there decides how it is compared: an object with `samples` by its samples, a list by the
keys of the edits that it is about, a number by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import one_line
from ..registry import Result
from .kinds import BITS, BYTES, DISTANCE, JOULES, LIKENESS, LIKENESS_100, RATE, RATIO, SECONDS, SUCCESS, Kind


@dataclass(frozen=True)
class Place:
    """Where figures of one kind are; `label` stands behind the names that the path went through."""

    path: str
    kind: Kind
    label: str = ""


@dataclass(frozen=True)
class Comparable:
    """A kind of result.

    Args:
        settings: entries that must be the same.
        places: of its figures; no result is without what the first one is in.
        timed: whether the figures are of the machine, too.
        keys: the entry that names the edits which lists are about; "" where their order does.
    """

    settings: tuple[str, ...]
    places: tuple[Place, ...]
    timed: bool = True
    keys: str = ""


@dataclass(frozen=True)
class Figure:
    """One figure of a result; exactly one of the last three is given."""

    name: str
    kind: Kind
    samples: tuple[float, ...] | None = None
    """Independent runs."""
    paired: dict[str, float] | None = None
    """Edit → its value."""
    value: float | None = None
    """Measured once, or computed."""


PICTURES = {
    "velocity_snr": RATIO,
    "psnr": RATIO,
    "ssim": LIKENESS,
    "ms_ssim": LIKENESS,
    "flip": DISTANCE,
    "ssimulacra2": LIKENESS_100,
    "lpips": DISTANCE,
    "clip": LIKENESS,
    "dino": LIKENESS,
    "success": SUCCESS,
}
"""Of a fidelity benchmark's entry: a metric, whose values for each edit are in NAME_each."""

FIDELITY = Comparable(
    settings=("model", "steps", "seed", "data"),
    places=tuple(
        Place(f"{group}.*.{where}", kind, label)
        for group in ("bundles", "peers")
        for where, kind, label in (
            *((f"{name}_each", kind, name) for name, kind in PICTURES.items()),
            ("bits_per_weight", BITS, "bits per weight"),
        )
    ),
    timed=False,
    keys="keys",
)

EDITS = {
    "latent_distance": DISTANCE,
    **dict.fromkeys(("psnr", "kept_psnr", "source_psnr"), RATIO),
    **dict.fromkeys(("kept_ssim", "source_ssim", "clip", "dino"), LIKENESS),
    **dict.fromkeys(("kept_delta_e", "source_delta_e"), DISTANCE),
    **dict.fromkeys(("success", "character_success", "text_read"), SUCCESS),
}
"""Of a bundle in edit-fidelity's result: a measure, whose values for each edit are in NAME_each."""

COMPARABLE: dict[str, Comparable] = {
    "latency": Comparable(
        ("model", "device", "steps", "guidance", "seed", "size"),
        (
            Place("sides.*.*", SECONDS),
            Place("peak_bytes.*", BYTES, "peak memory"),
            Place("psnr_db.*", RATIO, "agreement"),
            Place("joules.*", JOULES, "energy"),
        ),
    ),
    "throughput": Comparable(
        ("model", "device", "steps", "seed", "size"),
        (
            Place("batches.*.step", SECONDS, "step"),
            Place("batches.*.edit", SECONDS, "call"),
            Place("batches.*.joules", JOULES, "energy"),
        ),
    ),
    "cold start": Comparable(
        ("model", "steps", "guidance", "seed", "size"),
        (
            Place("sides.*.seconds", SECONDS, "wall time"),
            Place("sides.*.peak_bytes", BYTES, "peak memory"),
            Place("imports.*.seconds", SECONDS, "import"),
            Place("imports.*.peak_bytes", BYTES, "import, peak memory"),
            Place("psnr_db", RATIO, "agreement"),
        ),
    ),
    "export": Comparable(
        ("model",),
        (
            Place("formats.*.*.seconds", SECONDS, "wall time"),
            Place("formats.*.*.peak_bytes", BYTES, "peak memory"),
            Place("formats.*.bundle_bytes", BYTES, "bundle"),
        ),
    ),
    "success of edits": Comparable(
        ("model", "count", "guidance", "seed"), (Place("verdicts.*", SUCCESS, "steps"),), timed=False
    ),
    "fidelity": FIDELITY,
    "edit-fidelity": Comparable(
        ("model", "steps", "seed", "data"),
        tuple(Place(f"bundles.*.{name}_each", kind, name) for name, kind in EDITS.items()),
        timed=False,
        keys="keys",
    ),
    "methods": FIDELITY,
    "approximations": Comparable(
        ("model", "precision", "steps", "seed"),
        (
            Place("settings.[flags].psnr_each", RATIO, "psnr"),
            Place("settings.[flags].success_each", SUCCESS, "success"),
        ),
        timed=False,
        keys="keys",
    ),
    "quantspeed": Comparable(
        ("hidden", "blocks", "tokens", "threads"),
        (
            Place("sides.*.seconds", SECONDS, "step"),
            Place("sides.*.resident_bytes", BYTES, "resident"),
            Place("sides.*.peak_bytes", BYTES, "peak memory"),
            Place("sides.*.weight_bytes", BYTES, "weights"),
            Place("sides.*.snr", RATIO, "SNR"),
        ),
    ),
    "loras": Comparable(
        ("hidden", "blocks", "tokens", "rank", "threads"),
        (
            Place("steps.*.*.seconds", SECONDS),
            Place("swaps.*.*", SECONDS),
            Place("file.seconds.*", SECONDS, "large file"),
        ),
    ),
    "serving": Comparable(
        ("model", "batch", "references", "steps", "size", "same"),
        (Place("levels.[concurrency]", SECONDS, "callers"),),
    ),
    "serving-rest": Comparable(
        ("model", "steps", "size"),
        (
            Place("levels.*.[concurrency]", SECONDS, "callers"),
            Place("front.[size].seconds.*", SECONDS),
            Place("page.seconds", SECONDS, "page"),
            Place("upstream.seconds.*", SECONDS, "one caller"),
        ),
    ),
    "batch": Comparable(
        ("model", "device", "threads", "edits", "steps", "size", "batch_size"),
        (
            Place("sides.*.steps_per_second", RATE, "steps"),
            Place("scaling.sides.*.edits_per_second", RATE, "edits"),
        ),
    ),
    "memory": Comparable(
        ("size", "steps"), (Place("bundles.*.measured.*", BYTES, "peak memory"),), timed=False
    ),
}
"""What a result says it is → how it is compared."""

NOT_COMPARABLE: dict[str, str] = {
    "fullsize": "each export runs once, and the disk decides its time",
    "fullsize edit": "each backend runs once",
    "engines": "each engine is built once",
    "plans": "nothing is measured in it",
    "cards": "nothing is measured in it",
    "plan-fidelity": "it is a comparison itself: read how far apart both are",
    "capacity": "nothing is measured in it: it is a simulation",
    "capacity check": "it is a comparison itself: read how far apart both are",
    "vram-fit": "it says what fits on which card; compare the tables",
    "placement": "it counts operators; compare the tables",
    "gpu": "it keeps medians of kernels, not their samples; compare the ratios in its tables",
}
"""What a result says it is → why `compare` cannot take it."""


def figures_of(result: Result, comparable: Comparable) -> dict[str, Figure]:
    """A result's figures by name; what it does not have is left out.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not what its kind says.
    """
    whole = comparable.places[0].path.split(".")[0]
    if not isinstance(result.get(whole), (dict, list)) or not result[whole]:
        raise ValueError(f"it has no {whole}")
    if comparable.keys and not isinstance(result.get(comparable.keys), list):
        raise ValueError(f"it has no {comparable.keys}")
    edits = unique(result[comparable.keys]) if comparable.keys else None
    found = {}
    for place in comparable.places:
        for names, value in walk(result, place.path.split("."), []):
            name = one_line(", ".join([*names, *([place.label] if place.label else [])]))
            if (figure := figure_of(name, place.kind, value, edits)) is not None:
                found[name] = figure
    return found


def walk(value: Any, path: Sequence[str], names: list[str]) -> Iterator[tuple[list[str], Any]]:
    """(names on the way, value) of everything at a path."""
    if not path:
        yield names, value
    elif path[0] == "*":
        for name, below in (value or {}).items():
            yield from walk(below, path[1:], [*names, name])
    elif path[0].startswith("["):
        for item in value or []:
            yield from walk(item, path[1:], [*names, title(item[path[0][1:-1]])])
    elif isinstance(value, dict) and path[0] in value:
        yield from walk(value[path[0]], path[1:], names)


def title(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def figure_of(name: str, kind: Kind, value: Any, edits: Sequence[str] | None) -> Figure | None:
    """None if the value is not known; a size of nothing but numbers is measured once."""
    if value is None:
        return None
    if isinstance(value, dict) and "samples" in value:
        samples = tuple(finite(name, kind, each) for each in value["samples"])
        return Figure(name, kind, samples=samples) if samples else None
    if isinstance(value, dict):  # kind of edit → a verdict for each
        return Figure(
            name,
            kind,
            paired={
                f"{key}-{number}": finite(name, kind, each)
                for key, verdicts in value.items()
                for number, each in enumerate(verdicts)
            },
        )
    if isinstance(value, list):
        pairs = zip(edits or map(str, range(len(value))), value, strict=edits is not None)
        known = {key: finite(name, kind, each) for key, each in pairs if each is not None}
        return Figure(name, kind, paired=known) if known else None
    return Figure(name, kind, value=finite(name, kind, value))


def finite(name: str, kind: Kind, value: Any) -> float:
    """Raises ValueError unless it is a number that the figure can have; JSON as Python reads it has infinities, NaN and
    numbers of any length."""
    if not isinstance(value, (int, float)):
        raise ValueError(f"{name}: {value!r:.40} is no number")
    if not kind.allows(value):
        raise ValueError(f"{name}: {value!r:.40} cannot be a {kind.name}")
    return float(value)


def unique(keys: Sequence[str]) -> list[str]:
    """The keys, those that come again with a number."""
    seen: Counter[str] = Counter()
    found = []
    for key in keys:
        found.append(f"{key} ({seen[key] + 1})" if seen[key] else key)
        seen[key] += 1
    return found
