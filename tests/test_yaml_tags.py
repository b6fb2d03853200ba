"""Untrusted YAML, whose tags name functions that YAML readers call: krscale reads no YAML."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from readers import STRANGERS
from running import ROOT, in_process

TAGS = """---
a: !!python/object/apply:os.system ["touch {0}"]
b: !!python/object/new:pathlib.Path.touch [!!python/object/apply:pathlib.Path ["{0}"]]
c: !!python/module:canary
---
"""
NAMES = ("README.md", "dataset.yaml", "meta.yaml", "MLmodel", "config.yaml", "config.yml")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def plant(canary: Path) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        for name in NAMES:
            (folder / name).write_text(TAGS.format(canary))

    return put


def test_no_module_reads_yaml() -> None:
    for path in (ROOT / "krscale").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"yaml", "ruamel", "strictyaml"} & {n.partition(".")[0] for n in names}, path


@pytest.mark.parametrize("name", ["images", "parquet", "hf_disk", "npy", "cifar", "idx"])
def test_beside_data(name: str, plant: Callable[[Path], None], canary: Path) -> None:
    folder = canary.parent / "data"
    folder.mkdir()
    STRANGERS[name].write(folder)
    for place in [folder, *(path for path in folder.iterdir() if path.is_dir())]:
        plant(place)
    STRANGERS[name].read(folder)
    assert not canary.exists()


def test_in_a_run_folder(finished_run: Path, plant: Callable[[Path], None], canary: Path) -> None:
    run = Path(shutil.copytree(finished_run, canary.parent / "storage" / "tiny"))
    for folder in (run, run.parent):
        plant(folder)
    assert in_process("report")([str(run)]) == 0
    in_process("verify")([str(run)])
    in_process("clean")(["--storage-path", str(run.parent)])
    assert not canary.exists()
