"""The manifest's `sampler`: defaults of an edit, and how its schedule is made. Needs no numpy, for the exporter."""

from __future__ import annotations

from dataclasses import dataclass, field

from .fields import Fields, whole_numbers
from .manifest_ranges import MOST_SIZES, RANGES
from .reference_options import REFERENCE_METHODS

TIME_SHIFTS = ("exponential", "linear", "constant")
SPACINGS = ("uniform", "karras", "exponential", "beta")


@dataclass(frozen=True)
class SigmasEntry:
    """The manifest's `sampler.sigmas`; a manifest without it means these defaults, FLUX's."""

    time_shift: str = "exponential"
    """How far times are shifted towards the noise: by e^mu, by mu ("linear"), or by `shift` ("constant")."""
    shift: float = 1.0
    spacing: str = "uniform"
    """One of SPACINGS, which all but "uniform" space the sigmas anew between the first and the last one."""
    terminal: float | None = None
    """The last sigma before 0, or None to leave it where the shift takes it."""


@dataclass(frozen=True)
class SamplerEntry:
    """Defaults of an edit; the time shift is linear in target tokens between the two anchors."""

    steps: int
    guidance: float
    base_shift: float
    max_shift: float
    base_tokens: int
    max_tokens: int
    size_multiple: int
    preferred_sizes: tuple[tuple[int, int], ...]
    """(width, height) that the model works best at."""
    reference_method: str = "index"
    """One of REFERENCE_METHODS. Manifests from before it was recorded do not have it: all references were placed by
    index then."""
    sigmas: SigmasEntry = field(default_factory=SigmasEntry)


def read_sampler(entry: Fields) -> SamplerEntry:
    multiple, sizes = entry.whole("size_multiple"), []
    listing = entry.get("preferred_sizes")
    if not isinstance(listing, list) or not 0 < len(listing) <= MOST_SIZES:
        raise entry.error("preferred_sizes", f"must be a list of at most {MOST_SIZES} sizes")
    for item in listing:
        width, height = whole_numbers(
            item, 2, lambda what: entry.error("preferred_sizes", f"each {what}"), *RANGES["preferred_sizes"]
        )
        if width % multiple or height % multiple:
            raise entry.error("preferred_sizes", f"must be multiples of size_multiple ({multiple})")
        sizes.append((width, height))
    method = entry.data.get("reference_method", "index")
    if method not in REFERENCE_METHODS:
        raise entry.error(
            "reference_method", f"must be one of {', '.join(REFERENCE_METHODS)}, not {method!r:.40}"
        )
    base_tokens = entry.whole("base_tokens")
    return SamplerEntry(
        steps=entry.whole("steps"),
        guidance=entry.number("guidance"),
        base_shift=entry.number("base_shift"),
        max_shift=entry.number("max_shift"),
        base_tokens=base_tokens,
        max_tokens=entry.whole("max_tokens", least=base_tokens + 1),
        size_multiple=multiple,
        preferred_sizes=tuple(sizes),
        reference_method=method,
        sigmas=read_sigmas(entry),
    )


def read_sigmas(sampler: Fields) -> SigmasEntry:
    if "sigmas" not in sampler.data:
        return SigmasEntry()
    entry = sampler.group("sigmas")
    for name, choices in (("time_shift", TIME_SHIFTS), ("spacing", SPACINGS)):
        if entry.text(name) not in choices:
            raise entry.error(name, f"must be one of {', '.join(choices)}")
    shift = entry.number("shift")
    if shift <= 0:
        raise entry.error("shift", "must be above 0")
    terminal = None if entry.data.get("terminal") is None else entry.number("terminal")
    if terminal is not None and not 0 < terminal < 1:
        raise entry.error("terminal", "must be between 0 and 1")
    return SigmasEntry(entry.text("time_shift"), shift, entry.text("spacing"), terminal)
