"""A headless Chromium of the system's packages (`make browser` installs it).

    python tests/browser_fixtures.py http://127.0.0.1:8080/?q=How+do+I+sort+a+hash page.png [dark]

takes a picture of a page, as those of the documents were made.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
HINT = "no chromium and chromedriver here: run `make browser` as root, or apt-get install chromium chromium-driver"
_FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "disable-dev-shm-usage",
)  # fmt: skip


@contextmanager
def browser(profile: Path, *, dark: bool = False, size: tuple[int, int] = (1100, 1400)) -> Iterator[webdriver.Chrome]:
    """A browser with a fresh profile, for one test."""
    assert CHROMIUM is not None, HINT
    assert DRIVER is not None, HINT
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*_FLAGS, f"user-data-dir={profile}", f"window-size={size[0]},{size[1]}"):
        options.add_argument(f"--{flag}")
    if dark:
        options.add_argument("--force-dark-mode")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    try:
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
        )
        yield driver
    finally:
        driver.quit()


def picture(address: str, file: str, *, dark: bool = False, size: tuple[int, int] = (1100, 900)) -> None:
    """Write a PNG of a page, once it has stopped searching."""
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile), dark=dark, size=size) as driver:
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(address)
        time.sleep(1)
        until = time.monotonic() + 60
        while driver.find_elements("css selector", "#go:disabled") and time.monotonic() < until:
            time.sleep(0.2)
        time.sleep(0.5)
        driver.save_screenshot(file)


if __name__ == "__main__":
    picture(*sys.argv[1:3], dark="dark" in sys.argv[3:])
