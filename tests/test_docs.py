"""The pages are up to date, their links lead to files and headings, and the site can be built."""

import html
import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from documents import DOCUMENTS, ROOT, blocks, prose

LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", flags=re.M)


def anchors(text: str) -> tuple[set[str], set[str]]:
    """The anchors of a page's headings, as the site and as a browser of sources make them."""
    of_site, of_sources = [], []
    for heading in HEADING.findall(prose(text)):
        words = re.sub(r"\]\([^)]*\)|[`*\[]", "", html.unescape(heading))
        plain = re.sub(r"[^\w\s-]", "", words).strip().lower()
        of_sources.append(numbered(re.sub(r"\s", "-", plain), of_sources, "-"))
        of_site.append(numbered(re.sub(r"[-\s]+", "-", plain), of_site, "_"))
    return set(of_site), set(of_sources)


def numbered(slug: str, before: list[str], joint: str) -> str:
    """The slug, with a number where an earlier heading has it already."""
    number = sum(re.fullmatch(rf"{re.escape(slug)}({joint}\d+)?", s) is not None for s in before)
    return f"{slug}{joint}{number}" if number else slug


def broken(document: Path, text: str) -> list[str]:
    """Links of a text that lead to no file, or to no heading of it."""
    found = []
    for target in LINK.findall(prose(text)):
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        if path and not file.exists():
            found.append(target)
        elif anchor:
            page = text if file == document else file.read_text(encoding="utf-8")
            found += [target] if not all(anchor in known for known in anchors(page)) else []
    return found


@pytest.mark.parametrize("script", ["draw_modules.py", "write_reference.py"])
def test_what_is_generated_is_up_to_date(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(sys, "argv", [script, "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
    assert ended.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    assert broken(document, document.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[a](faq.md) [b](faq.md#questions) [c](#here)\n\n## Here", []),
        ("[a](nowhere.md)", ["nowhere.md"]),
        ("[a](faq.md#nowhere) [b](#here)", ["faq.md#nowhere", "#here"]),
        ("```\n## Here\n[x](nowhere.md)\n```\n[b](#here)", ["#here"]),
        ("## One: `two`, *three*\n## One\n## One\n[a](#one-two-three) [b](#one)", []),
    ],
)
def test_broken_links_are_found(text: str, found: list[str]) -> None:
    assert broken(ROOT / "docs" / "page.md", text) == found


def test_the_commands_of_a_cluster_are_those_of_the_readme() -> None:
    """They are run by tests/cluster/test_job_submit.py, which reads the README."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("**On a cluster.**")[1]
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert blocks(page, "console")[0] == blocks(readme, "console")[0]


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = [page.name for page in (ROOT / "docs").glob("*.md")]
    assert sorted(listed) == sorted(pages)


def python_with_mkdocs() -> str | None:
    """This Python, or that of `make docs`."""
    if all(importlib.util.find_spec(name) is not None for name in ("mkdocs", "material")):
        return sys.executable
    own = ROOT / ".venv" / "docs" / "bin"
    return str(own / "python") if (own / "mkdocs").exists() else None


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    python = python_with_mkdocs()
    if python is None:
        pytest.skip("mkdocs-material is not installed here; make docs installs it, and builds")
    done = subprocess.run(
        [python, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<(?:script|link|img)[^>]+https?://[^>]*>", page) == [], "loaded from others"
