"""The report in a real Chromium, from a file: sliders, filters, colours, width, console and accessibility."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("torch")
pytest.importorskip("selenium")
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from kontext.bench.html_report.command import make_report

from .conftest import RESULTS


class Page:
    """The report in the browser, as it was opened."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.browser = browser
        browser.get(path.as_uri())

    def cards(self) -> list[Any]:
        return [each for each in self.browser.find_elements(By.TAG_NAME, "article") if each.is_displayed()]

    def numbers(self) -> list[int]:
        return [int(each.get_attribute("data-number")) for each in self.cards()]

    def choose(self, name: str, text: str) -> None:
        Select(self.browser.find_element(By.CSS_SELECTOR, f"[data-filter={name}]")).select_by_visible_text(
            text
        )

    def shown(self, card: Any) -> list[str]:
        """The pictures of a card that are to be seen, the left one last: it lies above the other."""
        images = [each for each in card.find_elements(By.CSS_SELECTOR, ".compare img") if each.is_displayed()]
        images.sort(key=lambda each: "left" in each.get_attribute("class"))
        return [
            f"{each.get_attribute('data-kind')}{each.get_attribute('data-entry') or ''}" for each in images
        ]

    def script(self, code: str, *words: Any) -> Any:
        return self.browser.execute_script(code, *words)


@pytest.fixture(scope="module")
def report(fidelity: Path, sensitivity: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every chart, and edits with pictures."""
    names = ("latency", "quantspeed", "edits", "serving", "methods")
    files = [fidelity, *(RESULTS / f"{name}.json" for name in names), sensitivity]
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(make_report(files).html, encoding="utf-8")
    return path


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Page]:
    yield Page(browser, report)
    messages = browser.get_log("browser")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert messages == []  # no faults, and nothing that the page's policy had to stop


def emulate(page: Page, scheme: str, width: int) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def test_a_slider_moves_by_keys_and_by_dragging(page: Page) -> None:
    card = next(each for each in page.cards() if len(page.shown(each)) == 2)
    slider = card.find_element(By.CSS_SELECTOR, "input[type=range]")

    def split() -> float:
        left = card.find_element(By.CSS_SELECTOR, ".compare img.left")
        return float(
            page.script("return getComputedStyle(arguments[0]).clipPath", left).split()[1].removesuffix("%")
        )

    assert split() == 50
    slider.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert split() == 52  # of the picture to the right are hidden
    assert slider.get_attribute("aria-valuetext") == "48 % before"
    slider.send_keys(Keys.END)
    assert split() == 0
    width = slider.size["width"]
    ActionChains(page.browser).move_to_element(slider).click_and_hold().move_by_offset(
        -width // 4, 0
    ).release().perform()
    assert 70 < split() < 80


def test_filters_choose_edits_and_pictures(page: Page) -> None:
    assert page.numbers() == [2, 5, 1, 4, 0, 3]
    assert page.shown(page.cards()[0]) == ["after0", "before"]
    page.choose("category", "text (2)")
    assert page.numbers() == [1, 4]
    assert page.browser.find_element(By.CLASS_NAME, "count").text == "2 edits"
    assert page.shown(page.cards()[0]) == ["after0"]  # of text alone
    page.choose("bundle", "kontext int4")
    page.choose("compare", "reference and after")
    assert page.shown(page.cards()[0]) == ["after1", "reference"]
    heat = [each for each in page.cards()[0].find_elements(By.CLASS_NAME, "heat") if each.is_displayed()]
    assert len(heat) == 1
    page.choose("category", "all (6)")
    page.choose("order", "as measured")
    assert page.numbers() == [0, 1, 2, 3, 4, 5]
    page.choose("order", "worst FLIP first")
    assert page.numbers() == [2, 5, 1, 4, 0, 3]


def test_nothing_of_a_result_runs(page: Page) -> None:
    assert page.browser.title == "kontext-test, kontext-tiny"
    assert any("<script>" in each.text for each in page.browser.find_elements(By.TAG_NAME, "h3"))


def test_light_and_dark(page: Page) -> None:
    def colours() -> list[str]:
        found: list[str] = page.script(
            "const text = document.querySelector('.chart .wide svg text');"
            "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(text).fill]"
        )
        return found

    emulate(page, "light", 1280)
    light = colours()
    emulate(page, "dark", 1280)
    dark = colours()
    assert all(one != other for one, other in zip(light, dark, strict=True))
    button = page.browser.find_element(By.ID, "theme")
    assert button.get_attribute("aria-label") == "Show light colours"
    button.send_keys(Keys.ENTER)
    assert colours() == light
    button.click()
    assert colours() == dark


def test_plots_have_a_form_for_phones(page: Page) -> None:
    for width, shown in ((1280, "wide"), (360, "narrow")):
        emulate(page, "light", width)
        for name in ("wide", "narrow"):
            plots = page.browser.find_elements(By.CSS_SELECTOR, f".chart .{name}")
            assert len(plots) > 10
            assert {each.is_displayed() for each in plots} == {name == shown}


def test_no_column_of_the_origin_is_cut_on_a_desktop(browser: Any, tmp_path: Path) -> None:
    result = json.loads((RESULTS / "latency.json").read_text())
    recorded = {
        "command": "kontext-bench latency my-bundle --steps 28 --repeat 20 --openvino --json latency_openvino_amx.json",
        "source": {"commit": "0123456789abcdef", "modified": True},
        "started": "2026-01-01T01:02:03Z",
        "seconds": 1234.5,
        "seed": 0,
    }
    file = tmp_path / "latency_openvino_amx.json"
    file.write_text(json.dumps({**result, "provenance": recorded}))
    (tmp_path / "report.html").write_text(make_report([file]).html, encoding="utf-8")
    page = Page(browser, tmp_path / "report.html")
    emulate(page, "light", 1280)
    box = "const box = document.querySelector('#origin .scroll'); return box.scrollWidth - box.clientWidth"
    assert page.script(box) <= 0
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_accessibility_and_width(page: Page, scheme: str, width: int) -> None:
    """By axe-core's rules; nothing but tables in their boxes is wider than the screen."""
    axe = pytest.importorskip("axe_selenium_python").Axe(page.browser)
    emulate(page, scheme, width)
    page.script("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert page.script("return document.documentElement.scrollWidth") <= width
    axe.inject()
    violations = axe.run()["violations"]
    assert not violations, [
        (each["id"], each["impact"], each["nodes"][0]["html"][:200]) for each in violations
    ]
