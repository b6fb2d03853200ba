"""Compute on paper where a search on 8 and 256 GPUs spends time, bytes and money.

    python benchmarks/scaling.py            # writes the tables of docs/scaling.md
    python benchmarks/scaling.py --check    # only checks whether they are up to date

It trains nothing: figures come from `benchmarks/results/`, from krscale's own networks and rows of
stores, and from the assumptions in `benchmarks/parts/at_size.py`, where they can be changed.
"""

from __future__ import annotations

import argparse
import sys

from parts.at_size import Assumed, Measured, large_images, small_images
from parts.document import replaced, write_section
from parts.measuring import ROOT
from parts.on_paper import OnPaper
from parts.on_paper_table import (
    assumed_table,
    conclusions,
    demands_table,
    exchange_table,
    measured_table,
    phases_table,
    tasks_table,
)

from krscale.files import read_json

DOCUMENT = ROOT / "docs" / "scaling.md"
RESULTS = ROOT / "benchmarks" / "results"
GPUS = (8, 256)
NUM_TRIALS, NUM_FINALS = 999, 27
"""Three sizes, three methods: 111 trials each, and 3 final trainings."""


def sections() -> dict[str, tuple[str, str]]:
    """Return the title and text of every section by name, in the order of the page."""
    assumed = Assumed()
    measured = Measured.of(
        *(read_json(RESULTS / f"{name}.json") for name in ("step", "search", "gpu"))
    )
    small = small_images()
    tasks = (small, large_images(small))
    searches = [
        OnPaper(task, gpus, NUM_TRIALS, NUM_FINALS, assumed, measured)
        for task in tasks
        for gpus in GPUS
    ]
    return {
        "follows": ("What follows", conclusions(searches)),
        "tasks": ("The tasks", tasks_table(tasks, measured)),
        "time": ("Where time and money go", phases_table(searches)),
        "bytes": ("What is asked while trials run", demands_table(searches)),
        "exchange": ("One training on all GPUs", exchange_table(searches)),
        "figures": (
            "What was measured, and what is assumed",
            f"{measured_table(measured)}\n\n{assumed_table(assumed)}",
        ),
    }


def main(words: list[str] | None = None) -> int:
    """Write the page's sections, or compare them; return 1 if they differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(words).check
    before = text = DOCUMENT.read_text(encoding="utf-8")
    for name, (title, body) in sections().items():
        text = replaced(text, name, title, body)
        if not check:
            write_section(name, title, body, DOCUMENT)
    if check and text != before:
        print(f"scaling: {DOCUMENT} is older than what it is computed from", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
