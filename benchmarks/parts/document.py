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


def write_section(name: str, title: str, text: str, document: Path = DOCUMENT) -> None:
    """Replace the section `name`, or add it at the end.

    Args:
        name: Marks the section in the file.
        title: Its heading.
        text: Its content, in Markdown.
        document: The page.
    """
    content = document.read_text(encoding="utf-8") if document.exists() else _HEAD
    content = replaced(content, name, title, text)

    def write(path: Path) -> None:
        path.write_text(content, encoding="utf-8")

    write_atomic(document, write)


def replaced(content: str, name: str, title: str, text: str) -> str:
    """Return a page with a section replaced, or added at the end if it has none."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n## {title}\n\n{text.strip()}\n{end}\n"
    found = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}\n", re.DOTALL)
    if found.search(content):
        return found.sub(lambda _: section, content)
    return f"{content.rstrip()}\n\n{section}"
