"""The documents speak of what exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")
ENTRY = re.compile(r"^( *)([\w./-]+)( .*)?$")


def drawn_files() -> set[str]:
    """The paths of the tree in docs/architecture.md, from the names and their indentation."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    found = set()
    folders: list[tuple[int, str]] = []
    for line in text.split("```")[1].splitlines():
        match = ENTRY.match(line)
        if match is None or not match[2].endswith((".py", "/", ".yaml")):
            continue
        indent = len(match[1])
        while folders and folders[-1][0] >= indent:
            folders.pop()
        path = "".join(name for _, name in folders) + match[2]
        if path.endswith("/"):
            folders.append((indent, match[2]))
        found.add(path)
    return found


def test_the_tree_shows_every_module_and_nothing_else() -> None:
    drawn = drawn_files()
    modules = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "krscale").rglob("*.py")
        if not file.name.startswith("__")
    }
    assert modules - drawn == set(), "not in docs/architecture.md"
    assert {path for path in drawn if not (ROOT / path).exists()} == set(), "drawn, but not there"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    targets = LINK.findall(document.read_text(encoding="utf-8"))
    assert [t for t in targets if not (document.parent / t).exists()] == []
