"""A headless Chromium for tests of pages, where there is one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip


def chromium(profile: Path) -> Iterator[Any]:
    """A Chromium with a profile of its own; skips with the reason where there is none."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("Chromium and its driver are not installed (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


def open_page(chrome: Any, path: Path, *, width: int = 1200, scheme: str = "light") -> None:
    """Load a file in a window of some width, with the reader's preference of colours."""
    for kind in ("browser", "performance"):
        chrome.get_log(kind)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    chrome.get(path.as_uri())


def complaints(chrome: Any) -> list[str]:
    """What the console holds since the page was opened, errors and warnings."""
    return [entry["message"] for entry in chrome.get_log("browser")]


def requests(chrome: Any) -> list[str]:
    """The addresses that were asked for since the page was opened."""
    events = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    asked = [
        event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
    ]
    return [address for address in asked if not address.startswith("data:")]
