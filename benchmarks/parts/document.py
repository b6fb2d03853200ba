"""`docs/benchmarks.md`: one section per program, each written by the program itself."""

from __future__ import annotations

import re
from pathlib import Path

from krscale.files import write_atomic
from parts.measuring import ROOT

DOCUMENT = ROOT / "docs" / "benchmarks.md"
_HEAD = """# Benchmarks

Written by the programs in `benchmarks/` from their results in `benchmarks/results/`; do not edit.
Ratios are of things measured in turns in one run. Goals stand beside what was measured, met or
not.
"""


def write_section(name: str, title: str, text: str) -> None:
    """Replace the section `name`, or add it at the end.

    Args:
        name: Marks the section in the file.
        title: Its heading.
        text: Its content, in Markdown.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n## {title}\n\n{text.strip()}\n{end}\n"
    content = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else _HEAD
    found = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}\n", re.DOTALL)
    if found.search(content):
        content = found.sub(lambda _: section, content)
    else:
        content = f"{content.rstrip()}\n\n{section}"

    def write(path: Path) -> None:
        path.write_text(content, encoding="utf-8")

    write_atomic(DOCUMENT, write)
