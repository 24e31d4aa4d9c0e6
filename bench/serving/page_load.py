"""How long a page takes until it is loaded with its files, in a headless Chromium."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

from ...errors import KontextError
from .rest_front import quartiles

PAGES = 20

TIMING = """
const done = arguments[0];
const told = () => {
  const [page] = performance.getEntriesByType("navigation");
  if (!page.loadEventEnd) return setTimeout(told, 5);
  const files = performance.getEntriesByType("resource").filter(each => each.startTime < page.loadEventStart);
  done([page.loadEventEnd - page.startTime, 1 + files.length]);
};
told();
"""
"""Milliseconds from the navigation's start to the load event's end, and how many requests came before it."""


def measure_page(url: str) -> dict[str, Any]:
    """Seconds until the load event of `url` has ended, with an empty cache, over PAGES loads after one that does not
    count; or why they cannot be measured."""
    try:
        with chromium() as browser:
            browser.execute_cdp_cmd("Network.enable", {})
            loads = [load(browser, url) for _ in range(1 + PAGES)][1:]
    except KontextError as error:
        return {"skipped": str(error)}
    return {
        "seconds": quartiles([seconds for seconds, _ in loads]),
        "requests": loads[-1][1],
        "loads": PAGES,
    }


def load(browser: Any, url: str) -> tuple[float, int]:
    """Seconds and requests of one load."""
    browser.get("about:blank")
    browser.execute_cdp_cmd("Network.clearBrowserCache", {})
    browser.get(url)
    milliseconds, requests = browser.execute_async_script(TIMING)
    return milliseconds / 1000, int(requests)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A driver of a headless Chromium. Raises KontextError if there is none."""
    try:
        from selenium import webdriver
        from selenium.common.exceptions import WebDriverException
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        raise KontextError("Selenium is not installed: pip install selenium") from None
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        raise KontextError("Chromium is not there: Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(word)
    try:
        running = webdriver.Chrome(options=options, service=Service(driver))
    except WebDriverException as error:
        raise KontextError(f"Chromium does not start: {error.msg}") from None
    try:
        yield running
    finally:
        running.quit()
