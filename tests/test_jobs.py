"""The experiments in `jobs/` that read folders: how they are submitted, and a run on small ones."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from drilling import Drill
from PIL import Image
from running import ROOT, SMALL, here, overrides, script

from krscale.cli.app import main
from krscale.config import load
from krscale.parallel import Workers
from krscale.search.plan import describe_plan
from krscale.setup.prepare import pick_device
from krscale.training.precision import resolve_precision

FOLDERS = ("image_folder", "imagenet_resnet")
"""Jobs that read a folder of images."""


def pixels(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.JPEG")}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `scripts/synthetic_images.py --splits` writes, with few images."""
    folder = tmp_path_factory.mktemp("images") / "imagenet"
    write = script("synthetic_images").write_folder
    assert write(folder / "train", 4, 12, 0) == 48
    assert write(folder / "val", 4, 3, 1) == 12
    return folder


def test_synthetic_images_are_the_same_every_time_and_of_many_sizes(
    images: Path, tmp_path: Path
) -> None:
    script("synthetic_images").write_folder(tmp_path, 4, 12, 0)
    assert pixels(tmp_path) == pixels(images / "train")
    assert not set(pixels(images / "val").values()) & set(pixels(images / "train").values())
    sizes = set()
    for file in tmp_path.rglob("*.JPEG"):
        with Image.open(file) as image:
            sizes.add(image.size)
    assert len(sizes) > 20
    assert min(map(min, sizes)) >= load(ROOT / "jobs/imagenet_resnet.toml").data.files.image_size


def test_images_of_two_classes_differ() -> None:
    draw = script("synthetic_images").draw
    first, second = (
        np.asarray(draw(label, 4, np.random.default_rng(0)), dtype=float) for label in (0, 1)
    )
    assert first.shape == second.shape
    assert np.abs(first - second).mean() > 20


@pytest.mark.parametrize("job", FOLDERS)
def test_jobs_on_folders_are_planned(job: str, images: Path) -> None:
    plan = describe_plan(load(ROOT / f"jobs/{job}.toml", [f"data.path={str(images)!r}"]))
    assert "images of 3x64x64" in plan
    assert "4 classes, 60 images" in plan
    precision = plan.split("precision: ")[1].splitlines()[0]
    device = pick_device(load(ROOT / f"jobs/{job}.toml").train.device)
    assert f"auto: {resolve_precision('auto', Workers.alone(device))}" in precision


def test_imagenet_computes_its_batch_in_equal_parts() -> None:
    train = load(ROOT / "jobs/imagenet_resnet.toml").train
    assert train.global_batch_size % train.gradient_accumulation == 0
    assert train.gradient_accumulation > 1


@pytest.mark.parametrize("job", FOLDERS)
def test_a_job_says_how_it_is_submitted(job: str) -> None:
    """It is the README's command, which tests/cluster/test_job_submit.py runs, with this job."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = (ROOT / f"jobs/{job}.toml").read_text(encoding="utf-8")
    shown, there = (
        re.search(r"(?:RAY_AUTH_MODE=token )?(ray job submit .*)", re.sub(r"\\\n#? +", "", lines))
        for lines in (text, readme)
    )
    assert shown is not None
    assert there is not None
    words, expected = shlex.split(shown[1]), shlex.split(there[1])
    assert words[: len(expected) - 1] == expected[:-1]
    assert words[len(expected) - 1] == f"jobs/{job}.toml"
    # What follows are settings of this experiment.
    settings = words[len(expected) + 1 :: 2]
    assert settings
    load(ROOT / f"jobs/{job}.toml", settings)


def test_a_folder_that_is_there_is_not_written_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["synthetic_images.py", str(tmp_path)])
    assert script("synthetic_images").main() == 2
    assert "is there already" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.drill
@pytest.mark.cluster
def test_a_search_of_the_folder_job(drill: Drill, images: Path, tmp_path: Path) -> None:
    """The whole job on 60 images: search, finals, and the curve."""
    drill.must_hold("jobs/image_folder.toml runs to its curve on a folder of JPEG files")
    drill.injected("a job on 60 JPEG files of many sizes", kind="load")
    settings = (*SMALL, f"data.path={str(images)!r}", f"storage_path={str(tmp_path)!r}")
    small = ("data.files.image_size=16", "views.resized_crop=0.5", "train.warmup_epochs=0")
    tune = ["jobs/image_folder.toml", *overrides(*settings, *small, "tracking.enabled=false")]
    done = here("tune", tune)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "image-folder" / "curve.json").exists()
    assert main(["verify", str(tmp_path / "image-folder")]) == 0
    drill.held("search, finals and curve, and verify finds nothing wrong")
