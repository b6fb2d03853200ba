"""What the tutorials tell their readers to write and run does what the pages promise."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import ROOT, blocks

from krscale.cli.app import main

DOCS = ROOT / "docs"


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def test_the_method_of_the_tutorial_is_one() -> None:
    names: dict[str, object] = {}
    shown = blocks(text_of("writing-a-method.md"), "python")
    assert len(shown) == 6
    for block in shown:
        exec(compile(block, "writing-a-method.md", "exec"), names)


@pytest.fixture
def own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files of the tutorial, made as it says, in which commands are run."""
    for language in ("python", "toml"):
        for block in blocks(text_of("tutorial-own-images.md"), language):
            name = re.match(r"# (\w+\.\w+)\n", block)
            assert name is not None, block
            (tmp_path / name[1]).write_text(block, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("KRSCALE_STORAGE_PATH", str(tmp_path / "runs"))
    for program in ("make_images.py", "train_teacher.py"):
        runpy.run_path(program, run_name="__main__")
    yield tmp_path
    sys.modules.pop("my_teacher", None)


def test_the_experiment_on_own_images_is_ready_to_run(
    own_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", "my.toml"]) == 0
    assert "4 classes, 720 images of 3x16x16" in capsys.readouterr().out
    assert main(["teacher", "check", "my.toml"]) == 0
    assert "The teacher is best as the experiment has it, or nearly so" in capsys.readouterr().out
    assert main(["tune", "my.toml", "--dry-run"]) == 0
    assert "6 studies x 4 trials" in capsys.readouterr().out
    # As the page says: without the preprocessing, the command prints what to write.
    experiment = (own_images / "my.toml").read_text(encoding="utf-8")
    (own_images / "other.toml").write_text(
        re.sub(r"\[teacher\.preprocessing\]\n(?:\w.*\n)+", "", experiment), encoding="utf-8"
    )
    assert main(["teacher", "check", "other.toml"]) == 1
    said = capsys.readouterr().out
    assert '[teacher.preprocessing]\nnormalisation = "half"' in said
    assert "input_size = [32, 32]" in said
