"""A real Chromium, like a user's; tests that need it are skipped where it is not installed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from running import ROOT
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

ARTIFACTS = ROOT / "tests" / "artifacts"
"""Folder of the screenshots; not in git."""
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextmanager
def chromium(profile: Path, size: tuple[int, int] = (1600, 1100)) -> Iterator[Chrome]:
    """Start Chromium with an empty profile; skip the test where it is not installed."""
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in programs:
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = str(programs[0])
    for flag in (*_FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(str(programs[1])))
    try:
        yield driver
    finally:
        driver.quit()


def keep_screenshot(driver: Chrome, name: str) -> None:
    """Save a screenshot as `tests/artifacts/NAME.png`."""
    ARTIFACTS.mkdir(exist_ok=True)
    assert driver.save_screenshot(str(ARTIFACTS / f"{name}.png"))


def requested(driver: Chrome) -> list[str]:
    """Return every URL requested since the last call."""
    found = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            found.append(message["params"]["request"]["url"])
    return found


def wait_for(found: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Return the first true value of `found`; until the deadline, its exceptions count as false."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if value := found():
                return value
        except Exception:  # an element may be redrawn between finding and using it
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline, f"never seen: {what}"
        time.sleep(0.2)
