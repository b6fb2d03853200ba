"""A teacher's training by workers, with a launcher that has one worker in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle

from krscale.cluster import teacher
from krscale.cluster.teacher import teach_on_workers
from krscale.config import Experiment, load
from krscale.errors import NonFiniteError, UserError
from krscale.parallel import Workers
from krscale.setup.prepare import Prepared, prepare
from krscale.storage import heartbeats, room
from krscale.storage.address import CACHE_VARIABLE
from krscale.storage.objects import Objects
from krscale.training.checkpoint import save_weights
from krscale.training.loop import Training

SETTINGS = (
    "teacher.width=4",
    "teacher.num_epochs=2",
    "views.num_views=1",
    "distill.probe_grid=1",
    "data.max_images=300",
    "teacher.allow_poor=true",
    "teacher.num_workers=2",
)


class Steps:
    def __init__(self) -> None:
        self.of_teacher: list[tuple[int, int]] = []
        self.title = ""

    def phase(self, title: str) -> None:
        self.title = title

    def advance(self, done: int, total: int) -> None:
        if self.title == "teacher":
            self.of_teacher.append((done, total))

    def note(self, text: str) -> None:
        pass


def fit(
    build: Callable[[Workers], Training],
    experiment: Experiment,
    section: str,
    weights: Path,
    on_epoch: Callable[[dict[str, float]], None],
    note: Callable[[str], None],
) -> dict[str, float]:
    """Do what Ray Train does, with one worker."""
    assert section == "teacher"
    training = cloudpickle.loads(cloudpickle.dumps(build))(Workers.alone())
    metrics: dict[str, float] = {}
    while not training.finished:
        metrics = training.run_epoch()
        on_epoch(metrics)
    save_weights(weights, training.student)
    return metrics


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    for name in ("connect", "reach_storage", "check_arrival"):
        monkeypatch.setattr(teacher, name, lambda *arguments: None)
    monkeypatch.setattr(teacher, "fit_on_workers", fit)


def teach(storage: str, *settings: str, steps: Steps | None = None) -> Prepared:
    experiment = load(None, [*SETTINGS, f"storage_path={storage}", *settings])
    return prepare(experiment, steps or Steps(), train=teach_on_workers)


def test_workers_give_the_teacher_of_this_process_and_its_progress(tmp_path: Path) -> None:
    steps, alone = Steps(), Steps()
    many = teach(str(tmp_path / "many"), steps=steps)
    one = teach(str(tmp_path / "one"), "teacher.num_workers=1", steps=alone)
    assert steps.of_teacher == alone.of_teacher == [(1, 2), (2, 2)]
    assert many.teacher == one.teacher
    weights = [Path(each.teacher_path) / "teacher.safetensors" for each in (one, many)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_loss_that_is_not_finite_names_the_learning_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise NonFiniteError("loss term 'ce' is not finite in epoch 1, step 1 of 3")

    monkeypatch.setattr(teacher, "fit_on_workers", broken)
    with pytest.raises(NonFiniteError, match=r"^teacher: loss .* \(teacher.learning_rate is 0.1\)"):
        teach(str(tmp_path))


def test_on_a_uri_one_driver_trains_and_leaves_the_teacher_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_held", {})
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "one"))
    uri = f"file://{tmp_path}/bucket"
    objects = Objects.open(uri)
    refused: list[str] = []

    def fit_and_look(*arguments: Any) -> dict[str, float]:
        key = next(k for k in objects.list("cache/teachers") if k.endswith("/.driver.json"))
        folder = key.removesuffix("/.driver.json")
        objects.write(f"{folder}/train/checkpoint_1/state.pt", b"1")
        with monkeypatch.context() as patch:  # another machine
            patch.setenv(CACHE_VARIABLE, str(tmp_path / "two"))
            patch.setattr(room, "_held", {})
            patch.setattr(teacher, "fit_on_workers", fit)
            patch.setattr("krscale.storage.driver_lock.EXPIRE_SECONDS", 1e9)
            try:
                teach(uri)
            except UserError as error:
                refused.append(str(error))
        return fit(*arguments)

    monkeypatch.setattr(heartbeats, "BEAT_SECONDS", 0.0)  # the other machine waits for one
    monkeypatch.setattr(heartbeats, "TRY_SECONDS", 0.05)
    monkeypatch.setattr(teacher, "fit_on_workers", fit_and_look)
    found = teach(uri)
    assert len(refused) == 1
    assert "is being trained now by process" in refused[0]
    assert "choose another name" not in refused[0]
    left = [key for key in objects.list("cache/teachers") if "unfinished" in key]
    assert left == []
    name = Path(found.teacher_path).name
    assert f"cache/teachers/{name}/teacher.safetensors" in objects.list("cache/teachers")
