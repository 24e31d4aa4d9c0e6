"""`kontext-bench report`: one file that holds everything and loads nothing, and one line for bad input."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from base64 import b64encode
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("torch")

from kontext.bench import cli
from kontext.bench.html_report.command import Report, make_report, summed_up
from kontext.bench.html_report.loaded import load

from .conftest import KINDS, RESULTS, SCRIPT, write_fidelity

VOID = {"br", "img", "input", "link", "meta"}
LOADS = {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "formaction", "background"}


class Reader(HTMLParser):
    """The page as Python's own parser reads it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for each, attributes in self.elements if each == name]


@pytest.fixture(scope="module")
def page(fidelity: Path, sensitivity: Path) -> str:
    """All committed results, a synthetic one with pictures, and a report of sensitivity."""
    return make_report([fidelity, *sorted(RESULTS.glob("*.json")), sensitivity]).html


def test_the_page_is_whole_and_loads_nothing(page: str) -> None:
    found = Reader(page)
    assert found.open == []
    for name, attributes in found.elements:
        for key, value in attributes.items():
            assert key != "style", f"<{name} style=…> is against the page's policy"
            if key in LOADS:
                assert value is not None
                assert value.startswith(("#", "data:image/webp;base64,")), f"<{name} {key}={value[:60]}>"
    assert not [url for url in re.findall(r"url\(([^)]*)\)", page) if not url.startswith("#")]
    assert "@import" not in page
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {name for name, _ in found.elements}
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {f"#{each}" for each in ids} >= {each["href"] for each in found.named("a")}


def test_the_policy_allows_its_own_script_and_style_alone(page: str) -> None:
    (policy,) = [each["content"] for each in Reader(page).named("meta") if "http-equiv" in each]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    for name in ("script", "style"):
        (content,) = re.findall(f"<{name}>(.*?)</{name}>", page, re.DOTALL)
        digest = b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy


def test_every_result_has_its_section_and_its_tables(page: str) -> None:
    found = Reader(page)
    headings = len(found.named("section"))
    assert headings == len(list(RESULTS.glob("*.json"))) + 4  # edits, fidelity, sensitivity, origin
    texts = set(found.texts)
    for file in RESULTS.glob("*.json"):
        loaded = load(file)
        assert loaded.entry is not None
        benchmark: Any = loaded.entry.load()
        for table in benchmark.tables(loaded.result):
            for row in table.rows:
                assert row[0].strip("`") in texts or not row[0] or "`" in row[0], (file.name, row[0])
    assert "kontext-bench fidelity int8 --seed 0" in texts
    assert "0123456789ab, modified" in texts


def test_what_comes_from_a_result_stays_text(page: str) -> None:
    found = Reader(page)
    assert len(found.named("script")) == len(found.named("style")) == 1
    assert found.texts.count(SCRIPT) >= 2  # as a prompt and as a category
    assert not any((each.get("src") or "").startswith("http") for each in found.named("img"))
    for each in found.named("article"):
        assert not {key for key in each if key not in ("class", "data-category", "data-number")}


def test_pictures_and_figures_of_every_edit(page: str) -> None:
    found = Reader(page)
    articles = found.named("article")
    assert [each["data-number"] for each in articles] == [
        "2",
        "5",
        "1",
        "4",
        "0",
        "3",
    ]  # the most noise first
    kinds = [
        (each["data-kind"], each.get("data-entry")) for each in found.named("img") if "data-kind" in each
    ]
    assert kinds.count(("before", None)) == 4  # two of the edits are of text alone
    assert kinds.count(("reference", None)) == kinds.count(("after", "0")) == kinds.count(("after", "1")) == 6
    assert sum("alt" not in each for each in found.named("img")) == 0
    assert len(found.named("select")) == 4
    assert f"{KINDS[0]} (2)" in found.texts


def test_the_report_is_the_same_every_time(fidelity: Path) -> None:
    assert make_report([fidelity]).html == make_report([fidelity]).html


@pytest.mark.parametrize("side", [128, 1024])
def test_fifty_edits_stay_below_fifteen_megabytes(tmp_path: Path, side: int) -> None:
    made = make_report([write_fidelity(tmp_path, 50, side)])
    assert made.edits == 50
    assert len(made.html.encode()) < 15_000_000


def test_the_command(fidelity: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "report.html"
    words = ["report", str(fidelity), str(RESULTS / "latency.json"), "-o", str(output)]
    assert cli.main([*words, "-n", "4", "--title", "<Ours>"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"2 results, 4 edits with pictures in {output} (")
    assert said.err == ""
    text = output.read_text()
    assert "<h1>&lt;Ours&gt;</h1>" in text
    assert "The 4 worst of 6 edits." in text
    assert cli.main(words) == 2
    assert (
        capsys.readouterr().err
        == f"error: {output} exists: give --force to replace it, or choose another file\n"
    )
    assert cli.main([*words, "--force"]) == 0
    output.write_text("mine")
    assert cli.main([*words, "--force"]) == 2
    assert "exists and is not a report" in capsys.readouterr().err
    assert output.read_text() == "mine"


def test_sizes_are_in_units_that_fit_and_missing_edits_are_counted(tmp_path: Path) -> None:
    assert Report("x" * 12_300, 1, 0, []).described(tmp_path).endswith(" (12 kB)")
    assert Report("x" * 1_230_000, 1, 0, []).described(tmp_path).endswith(" (1.2 MB)")
    assert summed_up(["a", "b"]) == ["a; 1 more edit has none that can be read either"]


def test_missing_pictures_are_one_line(
    fidelity: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(fidelity, tmp_path)
    shutil.copytree(fidelity.parent / "pictures", tmp_path / "pictures")
    shutil.rmtree(tmp_path / "pictures" / "outputs" / "int4")
    output = tmp_path / "report.html"
    assert cli.main(["report", str(tmp_path / "fidelity.json"), "-o", str(output)]) == 0
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("without pictures: ")
    assert "outputs/int4/0000.png does not exist; 5 more edits have none that can be read either" in line
    assert "<article" not in output.read_text()
    (tmp_path / "pictures" / "reference" / "0000.png").write_bytes(b"no picture")


def test_pictures_outside_the_folder_of_a_result_are_not_read(
    fidelity: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A result from someone else would take pictures of this machine into a report."""
    result = json.loads(fidelity.read_text())
    own = tmp_path / "own"
    own.mkdir()
    (own / "link").symlink_to(fidelity.parent / "pictures")
    (own / "linked").mkdir()
    for each in ("source", "reference", "outputs"):
        (own / "linked" / each).symlink_to(fidelity.parent / "pictures" / each)
    output = tmp_path / "report.html"
    for folder in (str(fidelity.parent / "pictures"), "../pictures", "link", "linked"):
        result["pictures"]["folder"] = folder
        (own / "a.json").write_text(json.dumps(result))
        assert cli.main(["report", str(own / "a.json"), "-o", str(output), "--force"]) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("without pictures: ")
        assert "outside its own folder" in line or "is a link that leads out of" in line
        assert "<article" not in output.read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no JSON", "is not JSON"),
        ('{"what": "latency", "sides": {"a": [1, NaN]}}', "sides.a.1 is nan, which is no number"),
        ('{"what": "fidelity", "bundles": {"a": -Infinity}}', "bundles.a is -inf, which is no number"),
        ("[1, 2]", "is not a result of kontext-bench"),
        ('{"what": "latency", "schema": 1000}', "this kontext-bench reads up to version"),
        ("{}", "it does not say what was measured"),
        ('{"what": 3}', "it does not say what was measured"),
        ('{"what": "horoscope"}', "holds 'horoscope', which no benchmark of this version measures"),
        ('{"what": "latency"}', "is not a result of this version's kontext-bench"),
        ('{"what": "demo", "pictures": []}', "does not name its pictures as kontext-bench does"),
        ('{"format": "kontext-sensitivity"}', "is not a report of kontext-export sensitivity"),
        (None, "No such file or directory"),
    ],
)
def test_bad_results_are_one_line(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    if content is not None:
        file.write_text(content)
    assert cli.main(["report", str(file), "-o", str(tmp_path / "report.html")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_other_types_in_a_result_are_one_line(
    changed: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (
        ("bundles", 3),
        ("bundles", {"int4": {}}),
        ("kinds", 3),
        ("steps", "two"),
        ("machine", None),
    ):
        file = changed("odd", **{name: value})
        assert cli.main(["report", str(file), "-o", str(tmp_path / "report.html")]) == 2, name
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1


def test_bad_outputs_are_one_line(fidelity: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["-o", str(tmp_path / "none" / "report.html")], "does not exist: make the folder first"),
        (["-o", str(tmp_path), "--force"], "exists and is not a report"),
        (["-n", "0"], "--count must be at least 1"),
    ):
        assert cli.main(["report", str(fidelity), *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert cli.main(["report"]) == 2
    assert "RESULT" in capsys.readouterr().err


def test_characters_that_nothing_prints_are_replaced(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps({"what": "demo", "prompt": "a\x00b\x1b[31m\u2028c\nd"}))
    assert load(file).result["prompt"] == "a�b�[31m�c\nd"
