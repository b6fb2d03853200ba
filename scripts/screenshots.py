"""Take screenshots of a finished run's curve.html and report.html in Chromium.

    python scripts/screenshots.py [runs/digits] [--to docs/images]

Writes curve-html.png and report.png with 64 colours; each must stay below 150 kB, as every reader
of the documentation loads them. `krscale report RUN` writes report.html.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from chromium import chromium, wait_for  # noqa: E402 - a helper of the tests

MAX_BYTES = 150_000
PAGES = {"curve.html": ("curve-html", (1100, 760)), "report.html": ("report", (1100, 1500))}
"""File of a run -> the name of its picture, and the size of the window."""


def main() -> int:
    """Write the pictures; return 1 if a page is missing or a picture is too large."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, default=ROOT / "runs" / "digits")
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "images")
    arguments = parser.parse_args()
    arguments.to.mkdir(parents=True, exist_ok=True)
    for page, (name, size) in PAGES.items():
        source = arguments.run / page
        if not source.is_file():
            print(f"screenshots: {source} is not there: krscale report {arguments.run.name}")
            return 1
        content = small_png(_seen(source, size))
        if len(content) > MAX_BYTES:
            print(f"screenshots: {page}: {len(content):,} bytes, {MAX_BYTES:,} are allowed")
            return 1
        (arguments.to / f"{name}.png").write_bytes(content)
        print(f"screenshots: {arguments.to / name}.png, {len(content):,} bytes")
    return 0


def small_png(content: bytes) -> bytes:
    """Return a PNG with its own palette of 64 colours, compressed as far as possible.

    >>> picture = io.BytesIO()
    >>> Image.effect_noise((64, 64), 90).convert("RGB").save(picture, "PNG")
    >>> len(small_png(picture.getvalue())) < len(picture.getvalue())
    True
    """
    small = io.BytesIO()
    picture = Image.open(io.BytesIO(content)).convert("RGB").quantize(64)
    picture.save(small, "PNG", optimize=True)
    return small.getvalue()


def _seen(page: Path, size: tuple[int, int]) -> bytes:
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile), size) as driver:
        driver.get(page.resolve().as_uri())
        wait_for(lambda: driver.execute_script("return document.readyState") == "complete", "it")
        if page.name == "curve.html":
            points = "return document.querySelectorAll('.scatterlayer .point').length"
            wait_for(lambda: driver.execute_script(points) > 0, "the points")
        return driver.get_screenshot_as_png()


if __name__ == "__main__":
    sys.exit(main())
