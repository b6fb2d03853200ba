"""Untrusted names where people read them: terminal, errors, CSV, MLflow, HTML."""

from __future__ import annotations

import ast
import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from rich.table import Table
from running import ROOT, in_process

from krscale.config import DataConfig
from krscale.data.check import check_data
from krscale.progress import Progress
from krscale.report import read_curve, write_csv
from krscale.showing import clipped, printable, show, spreadsheet_text, terminal
from krscale.tracking.tracker import _texts

HOSTILE = (
    "\x1b[2J\x1b[31mred", "\x1b]0;title\x07", "\r\x1b[Kover", "a\x9b31m", "\u202eevil",
    "a\u2066b\u2069", "[bold red]x[/]", "[/nothing]", "[link=http://x]y", ":smile:", "<b>&x",
    "=1+1", "a\x7fb", "\ud800", "x" * 3000,
)  # fmt: skip


def harmless(text: str) -> bool:
    return not any(printable(c) != c for c in text) and text.encode() is not None


@pytest.mark.parametrize("name", HOSTILE)
def test_on_the_terminal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", title=name)
    table.add_row(clipped(name))
    terminal(force_terminal=True, no_color=True, width=200).print(table)
    show(f"Note: {name}")
    with Progress(quiet=False, planned={}) as progress:
        progress.note(name)
    out, err = capsys.readouterr()
    plain = (out + err).replace("\x1b[3m", "").replace("\x1b[0m", "").replace("\x1b[1m", "")
    assert harmless(plain), repr(plain)
    for kept in ("[bold red]x[/]", "[/nothing]", "[link=http://x]y", ":smile:"):
        if name == kept:
            assert out.count(kept) == 3
    assert max(map(len, out.splitlines()[:-1])) <= 200


@pytest.mark.parametrize("name", HOSTILE[:-2])
def test_an_error_that_quotes_a_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process("data")(["check", name]) == 2
    found = capsys.readouterr().err
    assert harmless(found), repr(found)
    assert "krscale: error: " in found


def test_classes_of_a_strangers_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [n for n in HOSTILE if n.isprintable() or "\x1b" in n or "\u202e" in n]
    names = [name for name in names if "/" not in name and len(name) < 250]
    for number, name in enumerate(names):
        for place in range(4):
            path = tmp_path / "data" / name / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (number, place, 0)).save(path)
    assert len(names) >= 6
    assert check_data(DataConfig(source="image_folder", path=str(tmp_path / "data"))).classes
    assert in_process("data")(["check", str(tmp_path / "data"), "--quiet"]) == 0
    found = capsys.readouterr().out
    assert harmless(found), repr(found)
    for name in names:
        assert printable(name) in found
    assert in_process("data")(["check", str(tmp_path / "data"), "--quiet", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["classes"]) == set(names)


def test_cells_of_a_spreadsheet(finished_run: Path, tmp_path: Path) -> None:
    curve = read_curve(finished_run)
    for name in ("=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "a\x1b[31m"):
        write_csv([curve.model_copy(update={"name": name})], tmp_path / "a.csv")
        rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
        assert {row["run"] for row in rows} == {spreadsheet_text(printable(name))}
        for row in rows:
            assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in row.values())
            assert all(harmless(cell) for cell in row.values())


def test_what_mlflow_is_told() -> None:
    found = _texts({"classes": list(HOSTILE), "path": HOSTILE[0]})
    assert all(map(harmless, found.values()))


def test_the_page_of_a_run_with_hostile_records(finished_run: Path, tmp_path: Path) -> None:
    from krscale.files import read_json, write_json

    run = Path(shutil.copytree(finished_run, tmp_path / "tiny"))
    content = read_json(run / "curve.json")
    content["data"]["source"] = "<script>alert(1)</script>\x1b[31m\u202e"
    content["teacher"]["model"] = "</script><img src=x onerror=alert(1)>"
    content["commit"] = "{{7*7}}\x1b]0;x\x07"
    write_json(run / "curve.json", content)
    environment = read_json(run / "environment.json")
    write_json(
        run / "environment.json", environment | {"command": "<b>\x1b[2J", "platform": "\x9b"}
    )
    assert in_process("report")([str(run)]) == 0
    for name in ("report.html", "curve.html", "curve.csv"):
        text = (run / name).read_text()
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert not any(mark in text for mark in ("\x1b", "\x9b", "\u202e"))


PRINTS_ITSELF = {"showing.py", "export/checking.py", "export/predict.py"}
"""`show` itself; a process that answers in JSON; a script that runs without krscale."""


def test_all_that_is_printed_is_made_printable() -> None:
    package = ROOT / "krscale"
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id == "print":
                found.add(path.relative_to(package).as_posix())
    assert found == PRINTS_ITSELF


def test_folders_of_a_strangers_storage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [n for n in HOSTILE if "/" not in n and "\ud800" not in n and len(n) < 250]
    for name in names:
        for kind in ("data", "teachers", "stores"):
            (tmp_path / "cache" / kind / name).mkdir(parents=True)
    command = ["--storage-path", str(tmp_path)]
    assert in_process("clean")(command) == 0
    found = capsys.readouterr().out
    assert found.count("evil: ") == 3
    assert harmless(found), repr(found)
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "experiment.json").write_text("no JSON")
    assert in_process("clean")(command) == 0
    said = capsys.readouterr().err
    assert "are not known: " in said
    assert harmless(said), repr(said)
