"""Take a picture of a report's first screen, with a digit drawn: ``python scripts/report_picture.py RUN OUT.png``.

Needs Chromium with its driver, Selenium and Pillow.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains

from gpumlp.report import report_page, write_page

WIDTH, HEIGHT = 1280, 800
SCALE = 1.5  # device pixels per CSS pixel
# a 3: its start relative to the middle of the pad, and moves from point to point, in CSS pixels
_MOVES = "50,-25 50,15 20,40 -30,45 -50,20 70,15 30,55 -20,50 -60,25 -70,-25"
THREE = [(-70, -100), *(tuple(map(int, move.split(","))) for move in _MOVES.split())]


def main(run: str, out: str) -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    with tempfile.TemporaryDirectory() as folder:
        flags = "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}"
        for flag in flags:
            options.add_argument(flag)
        page = Path(folder) / "report.html"
        write_page(page, report_page([run]))
        chrome = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver") or ""))
        try:
            size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": SCALE, "mobile": False}
            chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            chrome.get(page.as_uri())
            start, *moves = THREE
            pad = chrome.find_element("id", "pad")
            actions = ActionChains(chrome, duration=20).move_to_element_with_offset(pad, *start).click_and_hold()
            for move in moves:
                actions.move_by_offset(*move)
            actions.release().perform()
            time.sleep(1)  # until the answer is written out
            chrome.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
            time.sleep(0.2)
            chrome.save_screenshot(out)
        finally:
            chrome.quit()
    Image.open(out).convert("RGB").quantize(128).save(out, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
