"""`krscale data check`: what it finds, and how it ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from krscale.cli.app import main
from krscale.config import DataConfig
from krscale.data import prepare_data


def image(path: Path, seed: int, size: tuple[int, int] = (6, 5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def fill(root: Path, seed: int = 0, num_images: int = 12) -> Path:
    for label, name in enumerate(("ant", "bee", "cat")):
        for number in range(num_images):
            image(root / name / f"{number:02}.png", seed + 100 * label + number)
    return root


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["data", "check", *arguments, "--json", "--quiet"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, found


def test_a_clean_folder(tmp_path, capsys):
    root = fill(tmp_path / "data")
    code, found = check(capsys, str(root))
    assert code == 0
    assert found["problems"] == []
    assert found["source"] == "image_folder"
    assert found["image_shape"] == [3, 6, 5]
    assert found["modes"] == {"RGB": 36}
    assert found["sizes"] == {"6x5": 36}
    assert list(found["counts"]) == ["train", "val", "test"]
    for name in ("ant", "bee", "cat"):
        assert sum(of_class[name] for of_class in found["counts"].values()) == 12
    assert list(tmp_path.iterdir()) == [root], "nothing is written"


def test_its_splits_are_those_that_are_built(tmp_path, capsys):
    from krscale.config import DataConfig
    from krscale.data import prepare_data

    root = fill(tmp_path / "data")
    for number in range(5):  # copies stay together
        shutil.copy(root / "ant/00.png", root / f"ant/again{number}.png")
    _, found = check(capsys, str(root))
    dataset = prepare_data(DataConfig(source="image_folder", path=str(root)), tmp_path / "cache")
    built = {name: np.bincount(dataset.split(name).labels).tolist() for name in found["counts"]}
    assert {name: list(of.values()) for name, of in found["counts"].items()} == built


def test_everything_that_is_wrong_is_named_at_once(tmp_path, capsys):
    root = fill(tmp_path / "data")
    (root / "ant/00.png").write_bytes(b"")
    (root / "bee/01.png").write_bytes(b"no image")
    image(root / "cat/02.png", 1, (9, 9))
    shutil.copy(root / "bee/07.png", root / "bee/07b.png")
    shutil.copy(root / "bee/08.png", root / "cat/08b.png")
    fill(tmp_path / "hidden")
    shutil.move(tmp_path / "hidden/ant", root / "..dots")
    (root / "notes.txt").write_text("no image")
    code, found = check(capsys, str(root))
    assert code == 1
    assert [text.split(":")[0] for text in found["unreadable"]] == [
        f"{root}/ant/00.png", f"{root}/bee/01.png",
    ]  # fmt: skip
    assert [text.split(":")[0] for text in found["misfits"]] == [f"{root}/cat/02.png"]
    copies = sorted(tuple(sorted(group["labels"])) for group in found["copies"])
    assert copies == [("bee", "bee"), ("bee", "cat")]
    notes = " ".join(found["notes"])
    assert "'..dots' (12)" in notes
    assert ".txt 1" in notes
    assert any("2 images cannot be read" in problem for problem in found["problems"])


def test_what_is_skipped_is_no_problem_but_is_listed(tmp_path, capsys):
    root = fill(tmp_path / "data")
    (root / "ant/00.png").write_bytes(b"")
    code, found = check(capsys, str(root), "--set", "data.skip_unreadable=true")
    assert code == 0
    assert len(found["unreadable"]) == 1
    assert sum(found["counts"][name]["ant"] for name in found["counts"]) == 11


def test_an_image_in_two_splits_of_ones_own(tmp_path, capsys):
    root = tmp_path / "data"
    fill(root / "train")
    fill(root / "test", seed=5000, num_images=3)
    shutil.copy(root / "train/bee/04.png", root / "test/bee/again.png")
    code, found = check(capsys, str(root))
    assert code == 1
    (group,) = found["copies"]
    assert sorted(group["splits"]) == ["test", "train"]
    (problem,) = found["problems"]
    assert "train/bee/04.png (train)" in problem
    assert check(capsys, str(root), "--set", "data.allow_duplicates=true")[0] == 0


@pytest.mark.parametrize("num_images", [1, 2])
def test_a_class_that_is_too_small_is_named(tmp_path, capsys, num_images):
    root = fill(tmp_path / "data")
    for number in range(num_images):
        image(root / "yak" / f"{number}.png", 900 + number)
    code, found = check(capsys, str(root))
    assert code == 1
    assert found["too_small"] == {"yak": num_images}
    assert any(f"'yak' has {num_images}" in problem for problem in found["problems"])
    assert found["counts"]["train"]["ant"] == 12, "uncut"


def test_as_text(tmp_path, capsys):
    root = fill(tmp_path / "data")
    (root / "ant/00.png").write_bytes(b"")
    shutil.copy(root / "bee/07.png", root / "bee/07b.png")
    assert main(["data", "check", str(root), "--quiet"]) == 1
    out = capsys.readouterr().out
    assert "3 classes, 36 images of 3x6x5" in out
    assert f"  {root}/ant/00.png: not a readable image (it is empty (0 bytes))" in out
    assert f"  {root}/bee/07.png = {root}/bee/07b.png" in out
    assert "Would be refused: " in out


def test_an_embedded_source_and_an_experiment(tmp_path, capsys):
    code, found = check(capsys, "digits")
    assert code == 0
    assert found["modes"] == {}
    assert sum(found["counts"]["train"].values()) == 1077
    root = fill(tmp_path / "data")
    file = tmp_path / "mine.toml"
    file.write_text(f'[data]\nsource = "image_folder"\npath = "{root}"\n')
    assert check(capsys, str(file))[1]["path"] == str(root)


def test_what_cannot_be_looked_at(tmp_path, capsys):
    assert main(["data", "check", "digit"]) == 2
    assert "Did you mean the source 'digits'?" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path / "nothing")]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["data", "check", str(tmp_path / "empty")]) == 2
    assert "no folder of a class in it" in capsys.readouterr().err


def test_a_source_that_is_named_need_not_be_guessed(tmp_path, capsys):
    """For example a list of images whose name does not tell, or a renamed archive."""
    root = fill(tmp_path / "data")
    rows = [f"{file.parent.name}/{file.name},{file.parent.name}" for file in root.glob("*/*.png")]
    (root / "images.txt").write_text("\n".join(["path,label", *sorted(rows)]))
    assert main(["data", "check", str(root / "images.txt")]) == 2
    assert "no source reads such a file by itself" in capsys.readouterr().err
    code, found = check(capsys, str(root / "images.txt"), "--set", "data.source=image_list")
    assert (code, found["source"]) == (0, "image_list")
    assert sum(sum(of_class.values()) for of_class in found["counts"].values()) == 36


def test_images_without_labels_are_counted_and_compared(tmp_path, capsys):
    rng = np.random.default_rng(3)
    more = tmp_path / "more" / "deep"
    more.mkdir(parents=True)
    for number in range(4):
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(more / f"{number}.png")
    named = ("--set", f"data.unlabelled={tmp_path / 'more'}")
    code, found = check(capsys, "digits", *named)
    assert (code, found["num_unlabelled"], found["problems"]) == (0, 4, [])
    assert found["unlabelled"] == str(tmp_path / "more")
    assert main(["data", "check", "digits", *named, "--quiet"]) == 0
    assert f"; 4 without labels ({tmp_path / 'more'})" in capsys.readouterr().out
    test = prepare_data(DataConfig(), tmp_path / "cache").split("test")
    Image.fromarray(test.images[0, 0]).save(more / "copy.png")
    code, found = check(capsys, "digits", *named)
    assert code == 1
    (problem,) = found["problems"]
    assert "copy.png (in test)" in problem
    nowhere = ("--set", f"data.unlabelled={tmp_path / 'none'}")
    assert main(["data", "check", "digits", *nowhere]) == 2
    assert "data.unlabelled: " in capsys.readouterr().err
