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
    """Text in which `words` between backticks are code and **words** strong, as in the documents' tables."""
    parts = []
    for part in re.split(r"(`[^`]+`|\*\*[^*]+\*\*)", text):
        if len(part) > 2 and part[0] == part[-1] == "`":
            parts.append(element("code", part[1:-1]))
        elif len(part) > 4 and part.startswith("**") and part.endswith("**"):
            parts.append(element("strong", part[2:-2]))
        else:
            parts.append(escaped(part))
    return joined(parts, "")


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
    """Whether a cell is aligned as a number, with its sign, unit or interval, or none at all."""
    plain = text.replace("*", "")
    return plain in ("", "-", "–") or (
        re.match(r"[-+]?[\d.]", plain) is not None and sum(map(str.isalpha, plain)) <= 4
    )


def details(summary: str, *children: str) -> Html:
    return element("details", element("summary", summary), *children)
