"""The edits of a result as cards: before and after with a slider, heat maps and figures, with filters above them."""

from __future__ import annotations

from collections.abc import Sequence

from ..fidelity.picture_metrics import METRICS
from .edits import Edit, Output
from .markup import Html, element, joined
from .shrinking import Gallery, Shrunk, ShrunkEdit

UNITS = {"psnr": "dB"}
SHORT = {"psnr": "PSNR"}
COMPARISONS = {
    "before-after": "before and after",
    "reference-after": "reference and after",
    "before-reference": "before and reference",
}
SHARP_BELOW = 320
"""Pixels of a side below which pictures are enlarged without smoothing."""


def gallery_html(gallery: Gallery, name: str) -> Html:
    """All cards, the worst first, and their filters; `name` is unique in the page."""
    shown = gallery.edits
    titles: dict[str, str] = {}
    for each in shown:
        for found in each.edit.outputs:
            titles.setdefault(found.entry, found.title)
    categories = list(dict.fromkeys(each.edit.category for each in shown if each.edit.category))
    first = next(iter(titles), "")
    ordered = sorted(shown, key=lambda each: value_of(each.edit, first, "psnr", 1e9))
    cards = [card(each, list(titles), categories, gallery.scale) for each in ordered]
    return element(
        "div",
        filters(shown, titles, categories, name),
        element("p", f"{len(cards)} edits", class_="count", role="status"),
        element("div", joined(cards), class_="edits"),
        class_="gallery",
    )


def value_of(edit: Edit, entry: str, metric: str, otherwise: float) -> float:
    found = next((each for each in edit.outputs if each.entry == entry), None)
    return otherwise if found is None else found.metrics.get(metric, otherwise)


def filters(
    edits: Sequence[ShrunkEdit], titles: dict[str, str], categories: Sequence[str], name: str
) -> Html:
    """A choice for each thing that there are several of."""
    metrics = {metric for each in edits for found in each.edit.outputs for metric in found.metrics}
    with_reference = any(each.reference is not None for each in edits)
    counts = [sum(each.edit.category == category for each in edits) for category in categories]
    every = {
        "category": [
            ("", f"all ({len(edits)})"),
            *((str(n), f"{category} ({counts[n]})") for n, category in enumerate(categories)),
        ],
        "bundle": [(str(number), title) for number, title in enumerate(titles.values())],
        "compare": [
            (key, title) for key, title in COMPARISONS.items() if with_reference or key == "before-after"
        ],
        "order": [
            *(
                (metric, f"worst {METRICS[metric].label.split(' [')[0]} first")
                for metric in METRICS
                if metric in metrics
            ),
            ("number", "as measured"),
        ],
    }
    return element(
        "div",
        *(
            element(
                "label",
                element("span", key.capitalize()),
                element(
                    "select", *(element("option", title, value=v) for v, title in options), data_filter=key
                ),
            )
            for key, options in every.items()
            if len(options) > 1
        ),
        class_="filters",
        role="group",
        aria_label="Which edits, and how",
        id=f"{name}-filters",
    )


def card(each: ShrunkEdit, entries: Sequence[str], categories: Sequence[str], scale: int) -> Html:
    edit = each.edit
    prompt = edit.prompt or edit.key
    return element(
        "article",
        comparison(each, entries, prompt),
        element(
            "div",
            element("h3", prompt),
            element(
                "p",
                element("span", edit.category, class_="chip") if edit.category else "",
                element("span", edit.key, class_="key"),
                class_="about",
            ),
            *(measured(each, found, entries.index(found.entry), scale) for found in edit.outputs),
            class_="words",
        ),
        class_="edit",
        data_category=categories.index(edit.category) if edit.category else "",
        data_number=edit.number,
    )


def comparison(each: ShrunkEdit, entries: Sequence[str], prompt: str) -> Html:
    """All pictures of an edit, two of which are shown on the two sides of a slider."""
    pictures = [
        picture(each.source, "before", f"Before: {prompt}", hidden=False),
        picture(each.reference, "reference", f"By the reference: {prompt}", hidden=True),
        *(
            picture(
                each.outputs[found.entry],
                "after",
                f"By {found.title}: {prompt}",
                hidden=place > 0,
                entry=entries.index(found.entry),
            )
            for place, found in enumerate(each.edit.outputs)
        ),
    ]
    small = max((max(one.width, one.height) for one in each.outputs.values()), default=0) < SHARP_BELOW
    alone = each.source is None
    return element(
        "div",
        *pictures,
        element("span", "before", class_="side left", aria_hidden="true", hidden=alone),
        element("span", "after", class_="side right", aria_hidden="true"),
        element("span", class_="handle", aria_hidden="true", hidden=alone),
        element(
            "input",
            type="range",
            min=0,
            max=100,
            value=50,
            aria_label=f"Before and after: {prompt}",
            hidden=alone,
        ),
        class_="compare small" if small else "compare",
        data_prompt=prompt,
    )


def picture(shrunk: Shrunk | None, kind: str, alt: str, *, hidden: bool, entry: int | None = None) -> Html:
    if shrunk is None:
        return Html("")
    return element(
        "img",
        class_="left" if kind == "before" else None,
        data_kind=kind,
        data_entry=entry,
        hidden=hidden,
        alt=alt,
        width=shrunk.width,
        height=shrunk.height,
        decoding="async",
        src=shrunk.uri,
    )


def measured(each: ShrunkEdit, found: Output, entry: int, scale: int) -> Html:
    """The heat map and the figures of one bundle."""
    heat = each.heat.get(found.entry)
    figures = [
        (SHORT.get(metric, METRICS[metric].label), number(metric, value))
        for metric, value in found.metrics.items()
    ]
    if found.accepted is not None:
        figures.append(("judge", verdict(found.accepted, each.edit.reference_accepted)))
    if heat is None and not figures:
        return Html("")
    return element(
        "div",
        element(
            "figure",
            element(
                "img",
                alt=f"Where {found.title} differs from the reference",
                width=heat.width,
                height=heat.height,
                decoding="async",
                src=heat.uri,
            ),
            element("figcaption", ramp(scale)),
            class_="heat",
        )
        if heat is not None
        else "",
        element(
            "dl", *(part for name, value in figures for part in (element("dt", name), element("dd", value)))
        ),
        class_="measured",
        data_entry=entry,
        hidden=found.entry != each.edit.outputs[0].entry,
        **{f"data_value_{metric}": value for metric, value in found.metrics.items()},
    )


def ramp(scale: int) -> Html:
    """The colours of heat maps, with the differences that they stand for."""
    return joined(
        [
            element("span", class_="ramp"),
            *(element("span", text, class_="tick") for text in ("0", str(scale // 4), f"{scale} of 255")),
        ],
        "",
    )


def number(metric: str, value: float) -> str:
    shown = f"{value:.{METRICS[metric].digits}f}"
    return f"{shown} {UNITS[metric]}" if metric in UNITS else shown


def verdict(accepted: bool, reference: bool | None) -> str:
    said = "accepts" if accepted else "refuses"
    return said if reference is None or reference == accepted else f"{said}, not the reference's"
