"""The page in a real Chromium: upload, edit, cancel, errors, the mask, history, keys, accessibility."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext.runtime import Pipeline

from .conftest import KEY, Served, png

pytest.importorskip("selenium")
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

PIXELS = """
const [url, done] = arguments, image = new Image();
image.onload = () => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  canvas.getContext("2d").drawImage(image, 0, 0);
  done(canvas.toDataURL("image/png").split(",")[1]);
};
image.src = url;
"""
"""Hands a picture's pixels to the test, as a PNG file in base64."""

WATCH = """
const real = fetch;
window.fetch = (url, options) => {
  if (options?.body instanceof FormData) window.sentMask = URL.createObjectURL(options.body.get("mask"));
  return real(url, options);
};
"""
"""Keeps the mask that the page sends."""


class Page:
    """A browser at a server's page."""

    def __init__(self, browser: Any, server: Served) -> None:
        self.browser = browser
        self.server = server
        browser.get(server.url)

    def at(self, name: str) -> Any:
        return self.browser.find_element(By.ID, name)

    def until(self, true: Callable[[], object]) -> None:
        WebDriverWait(self.browser, 60, 0.05).until(lambda _: true())

    def upload(self, path: Path) -> None:
        self.at("files").send_keys(str(path))
        self.until(lambda: self.at("canvas-box").is_displayed())

    def fill(self, name: str, text: str) -> None:
        self.at(name).clear()
        self.at(name).send_keys(text)

    def run(self, prompt: str, steps: int) -> None:
        self.fill("prompt", prompt)
        self.fill("steps", str(steps))
        self.at("run").click()

    def picture(self, url: str) -> Image.Image:
        data = base64.b64decode(self.browser.execute_async_script(PIXELS, url))
        return Image.open(io.BytesIO(data), formats=["PNG"]).convert("RGB")

    def result(self) -> Image.Image:
        self.until(lambda: self.at("after").is_displayed() or self.at("error").is_displayed())
        assert not self.at("error").is_displayed(), self.at("error").text
        return self.picture(self.at("compare-after").get_attribute("src"))

    def check_console(self, *expected: str) -> None:
        """No messages but those of failed requests that a test provokes."""
        messages = [each["message"] for each in self.browser.get_log("browser")]
        assert not [each for each in messages if not any(words in each for words in expected)]


@pytest.fixture
def page(browser: Any, rest: Served) -> Page:
    return Page(browser, rest)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    path.write_bytes(png(128, 96))
    return path


def opened(path: Path) -> Image.Image:
    return Image.open(path, formats=["PNG"])


def test_an_edit_and_its_history(page: Page, picture: Path, pipeline: Pipeline) -> None:
    page.upload(picture)
    page.fill("seed", "3")
    page.run("make it red", 3)
    assert np.array_equal(page.result(), pipeline.edit(opened(picture), "make it red", steps=3, seed=3))
    page.at("split").send_keys(Keys.HOME)
    assert page.browser.execute_script("return document.getElementById('split').value") == "0"
    page.browser.refresh()
    page.until(lambda: page.at("history").is_displayed())
    page.browser.find_element(By.CSS_SELECTOR, "#entries .open").click()
    page.until(lambda: page.at("after").is_displayed())
    assert page.at("prompt").get_attribute("value") == "make it red"
    assert page.at("seed").get_attribute("value") == "3"
    page.at("forget").click()
    page.until(lambda: not page.at("history").is_displayed())
    page.check_console()


def test_the_mask_reaches_the_server(page: Page, picture: Path, pipeline: Pipeline) -> None:
    page.browser.execute_script(WATCH)
    page.upload(picture)
    page.at("paint").click()
    mask = page.at("mask")
    actions = ActionChains(page.browser).move_to_element(mask).click_and_hold()
    actions.move_by_offset(60, 40).move_by_offset(-90, 20).release().perform()
    mask.send_keys(Keys.ARROW_LEFT, Keys.ARROW_UP, Keys.SPACE)
    page.at("undo").click()
    mask.send_keys(Keys.SPACE)
    page.run("make it red", 3)
    result = page.result()
    sent = page.picture(page.browser.execute_script("return window.sentMask"))
    white = np.asarray(sent.convert("L")) >= 128
    assert 0.02 < white.mean() < 0.5
    expected = pipeline.edit(opened(picture), "make it red", steps=3, mask=sent.convert("L"))
    assert np.array_equal(result, expected)
    page.check_console()


def test_drawing_without_a_picture(page: Page, pipeline: Pipeline) -> None:
    page.run("a red circle", 2)
    assert np.array_equal(page.result(), pipeline.edit(None, "a red circle", steps=2))
    page.check_console()


def test_cancelling(page: Page, picture: Path) -> None:
    cancelled = 'kontext_edits_total{model="kontext-random",outcome="cancelled"}'
    before = page.server.metric(cancelled)
    page.upload(picture)
    page.run("make it red", 200)
    page.until(lambda: "of 200" in page.at("progress-text").text)
    page.until(lambda: page.at("preview").is_displayed())
    page.browser.switch_to.active_element.send_keys(Keys.ENTER)  # on the button, which has the focus
    page.until(lambda: not page.at("running").is_displayed())
    page.server.until(lambda: page.server.metric(cancelled) == before + 1)
    assert not page.at("error").is_displayed()
    assert page.at("run").is_enabled()
    page.check_console()


def test_errors_in_words(page: Page, picture: Path, tmp_path: Path) -> None:
    page.upload(picture)
    page.run("make it red", 201)
    page.until(lambda: page.at("error").is_displayed())
    assert page.at("error").text == "Steps may be at most 200 here, not 201."
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    page.at("more").send_keys(str(text))
    page.until(lambda: "notes.png is not a picture" in page.at("error").text)
    page.check_console()


def test_a_server_with_keys(
    browser: Any, serve: Callable[..., Served], rest_folder: Path, picture: Path
) -> None:
    keys = rest_folder / "keys-of-the-page"
    keys.write_text(KEY)
    page = Page(browser, serve("--api-keys", keys).ready())
    page.until(lambda: page.at("key-form").is_displayed())
    page.at("key").send_keys("wrong-key-0123456789", Keys.ENTER)
    page.until(lambda: page.at("server").text == "an API key is needed")
    page.at("key").send_keys(KEY, Keys.ENTER)
    page.until(lambda: page.at("server").text == "kontext-random")
    assert not page.at("key-form").is_displayed()
    page.upload(picture)
    page.run("make it red", 2)
    page.result()
    page.check_console("401")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility_and_width(page: Page, picture: Path, scheme: str) -> None:
    """By axe-core's rules, in both colour schemes; nothing is wider than a phone."""
    axe = pytest.importorskip("axe_selenium_python").Axe(page.browser)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True},
    )
    page.upload(picture)
    page.run("make it red", 1)
    page.result()
    axe.inject()
    violations = axe.run()["violations"]
    assert not violations, [(each["id"], each["nodes"][0]["html"]) for each in violations]
    assert page.browser.execute_script("return document.documentElement.scrollWidth") <= 360
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
