"""HTML as text that is safe to join: whatever is not `Html` is escaped when it becomes part of an element."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from ..report import Table

VOID = ("br", "img", "input", "meta")


class Html(str):
    """Text that is HTML already."""


def escaped(text: str) -> Html:
    return text if isinstance(text, Html) else Html(html.escape(text, quote=True))


def joined(parts: Iterable[str], between: str = "\n") -> Html:
    return Html(between.join(escaped(part) for part in parts))


def element(name: str, *children: str, **attributes: object) -> Html:
    """`<name attributes>children</name>`. `class_` is the attribute class, `data_kind` data-kind; True has no value,
    False and None leave an attribute out."""
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.removesuffix("_").replace("_", "-")
        words.append(attribute if value is True else f'{attribute}="{html.escape(str(value), quote=True)}"')
    start = f"<{' '.join(words)}>"
    return Html(start if name in VOID else f"{start}{joined(children, '')}</{name}>")


def prose(text: str) -> Html:
    """Text in which `words` between backticks are code, as in the documents' tables."""
    parts = re.split(r"`([^`]+)`", text)
    return Html(
        "".join(element("code", part) if place % 2 else escaped(part) for place, part in enumerate(parts))
    )


def table_html(table: Table, label: str) -> Html:
    """A table that scrolls inside its own box where it is wider than the page."""
    numeric = [all(is_number(row[column]) for row in table.rows) for column in range(len(table.header))]

    def cell(column: int, text: str) -> Html:
        if column == 0:
            return element("th", prose(text), scope="row")
        return element("td", prose(text), class_=None if numeric[column] else "words")

    head = element(
        "tr",
        *(
            element(
                "th", prose(text), scope="col", class_=None if column == 0 or numeric[column] else "words"
            )
            for column, text in enumerate(table.header)
        ),
    )
    body = [element("tr", *(cell(column, text) for column, text in enumerate(row))) for row in table.rows]
    return element(
        "div",
        element("table", element("thead", head), element("tbody", *body)),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=label,
    )


def is_number(text: str) -> bool:
    """Whether a cell is aligned as a number: a few digits, with a sign or a unit, or none at all."""
    return re.fullmatch(r"(?:[-+–]?[\d.,]*\d[\d.,e+-]*\s?[^\s\d]{0,4}|-|–|)", text) is not None


def details(summary: str, *children: str) -> Html:
    return element("details", element("summary", summary), *children)
