"""HTML is escaped unless it is marked as HTML; tables keep every cell."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from kontext.bench.html_report.markup import Html, element, escaped, is_number, prose, table_html
from kontext.bench.report import Table


class Reader(HTMLParser):
    """What Python's own parser finds: the names of elements, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.names.append(name)
        self.attributes.append(dict(attributes))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@given(st.text(), st.text())
def test_any_text_stays_text(content: str, value: str) -> None:
    found = Reader(element("p", content, title=value))
    assert found.names == ["p"]
    assert "".join(found.texts) == content
    assert found.attributes == [{"title": value}]


def test_elements() -> None:
    inner = element("b", "<")
    assert element("p", inner, "&", class_="a", data_kind=3, hidden=True, title=None, id=False) == (
        '<p class="a" data-kind="3" hidden><b>&lt;</b>&amp;</p>'
    )
    assert element("img", src="x") == '<img src="x">'
    assert escaped(Html("<br>")) == "<br>"


def test_words_between_backticks_are_code() -> None:
    assert prose("`--fp8 <x>` & `") == "<code>--fp8 &lt;x&gt;</code> &amp; `"
    assert prose("**58.1** (57–59) ** <") == "<strong>58.1</strong> (57–59) ** &lt;"


def test_a_table_keeps_its_cells() -> None:
    table = Table(["weights", "bits", "method"], [["int4 <b>", "4.50", "error feedback"], ["", "-", "none"]])
    found = Reader(table_html(table, "Bits"))
    assert [text for text in found.texts if text.strip()] == [
        *("weights", "bits", "method", "int4 <b>", "4.50", "error feedback", "-", "none")
    ]
    assert found.attributes[0] == {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": "Bits"}


def test_numbers() -> None:
    for text in (
        "1",
        "-1.5",
        "+0.0",
        "2.23x",
        "97%",
        "12.3 dB",
        "1e-05",
        "-",
        "–",
        "",
        "1,024",
        "**58.1** (57.0–59.2)",
        "+0.0 (-1 to +1)",
        "1 / 2=",
    ):
        assert is_number(text), text
    for text in ("int4", "nothing lost", "75 int8, 96 uint4"):
        assert not is_number(text), text
