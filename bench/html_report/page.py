"""The page: sections, style sheet and script in one file, under a policy that lets nothing be loaded."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from ...installation import VERSION
from .markup import Html, element, escaped, joined
from .sections import Section

STATIC = Path(__file__).resolve().parent / "static"

GENERATOR = "kontext-bench report"
MARK = f'<meta name="generator" content="{GENERATOR} {VERSION}">'
"""In every report, by which it is known."""


@dataclass(frozen=True)
class Heading:
    """What the page begins with."""

    title: str
    about: str
    headlines: Html


def make_page(heading: Heading, sections: Sequence[Section]) -> str:
    style, script, template = (
        (STATIC / name).read_text(encoding="utf-8") for name in ("report.css", "report.js", "report.html")
    )
    navigation = joined(element("a", section.title, href=f"#{section.anchor}") for section in sections)
    return Template(template).substitute(
        policy=policy(style, script),
        generator=MARK,
        title=escaped(heading.title),
        about=escaped(heading.about),
        headlines=heading.headlines,
        style=style,
        script=script,
        navigation=navigation,
        sections=joined(map(section_html, sections)),
        version=escaped(VERSION),
    )


def section_html(section: Section) -> Html:
    heading = f"{section.anchor}-title"
    return element(
        "section",
        element("h2", section.title, id=heading),
        section.body,
        id=section.anchor,
        aria_labelledby=heading,
    )


def policy(style: str, script: str) -> str:
    """A Content-Security-Policy that allows this style sheet, this script and pictures inside the page."""

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; img-src data:; style-src {source(style)}; script-src {source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
