"""A teacher that several workers train: its folder, what is requested, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from krscale.config import Experiment, load
from krscale.data import Dataset, prepare_data
from krscale.errors import UserError
from krscale.parallel import Workers
from krscale.progress import Progress
from krscale.setup import teacher as module
from krscale.setup.prepare import prepare
from krscale.setup.teacher import prepare_teacher
from krscale.setup.teacher_training import build_teacher_training
from krscale.storage.folders import publish

CPU = torch.device("cpu")
SETTINGS = (
    "teacher.width=4",
    "teacher.num_epochs=1",
    "views.num_views=1",
    "distill.probe_grid=1",
    "data.max_images=300",
    "teacher.allow_poor=true",
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # makes weights equal, bit by bit


def experiment(storage: Path, *settings: str) -> Experiment:
    return load(None, [*SETTINGS, f"storage_path={storage}", *settings])


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def train(asked: list[Path], settings: Experiment, dataset: Dataset, *others: object) -> None:
    """Train as one worker of Ray Train would, and leave the same folder."""
    folder, model = others[-2:]
    assert isinstance(model, nn.Module)
    assert isinstance(folder, Path)
    asked.append(folder)
    (folder / "train").mkdir(parents=True)
    training = build_teacher_training(settings, dataset, model, Workers.alone())
    while not training.finished:
        training.run_epoch()


def test_a_teacher_of_several_workers_is_the_same_in_the_same_folder(tmp_path: Path) -> None:
    asked: list[Path] = []
    found = {}
    for name, settings in {"one": (), "many": ("teacher.num_workers=3",)}.items():
        with Progress(quiet=True, planned={}) as progress:
            found[name] = prepare(
                experiment(tmp_path / name, *settings), progress, train=partial(train, asked)
            )
    one, many = (tmp_path / name / "cache/teachers" for name in ("one", "many"))
    assert contents(one) == contents(many)
    assert [p.name for p in asked] == [f".{Path(found['one'].teacher_path).name}.unfinished"]
    assert not asked[0].exists()
    assert found["one"].teacher == found["many"].teacher
    # The kept teacher serves any number of workers, and one process without workers.
    with Progress(quiet=True, planned={}) as progress:
        again = prepare(experiment(tmp_path / "one", "teacher.num_workers=2"), progress)
    assert again.teacher_path == found["one"].teacher_path


def test_what_is_unfinished_goes_only_when_the_teacher_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = experiment(tmp_path, "teacher.num_workers=2")
    dataset = prepare_data(several.data, several.cache_path)
    asked: list[Path] = []
    seen: list[bool] = []

    def on_workers(folder: Path, model: nn.Module) -> None:
        if not folder.exists():
            folder.mkdir()
            raise KeyboardInterrupt
        (folder / "train").rmdir() if (folder / "train").exists() else None
        train(asked, several, dataset, folder, model)

    def send(folder: Path) -> bool:
        seen.append(asked[0].is_dir())
        return publish(folder)

    monkeypatch.setattr(module, "publish", send)
    make: Callable[[], object] = lambda: prepare_teacher(  # noqa: E731
        several, dataset, CPU, lambda done, total: None, on_workers
    )
    with pytest.raises(KeyboardInterrupt):
        make()
    assert [p.name for p in (tmp_path / "cache/teachers").glob(".*.unfinished")]
    make()
    assert seen == [True], "sent before its checkpoints go"
    assert not list((tmp_path / "cache/teachers").glob(".*.unfinished"))


def test_several_workers_are_refused_where_one_process_trains(tmp_path: Path) -> None:
    several = experiment(tmp_path, "teacher.num_workers=2")
    dataset = prepare_data(several.data, several.cache_path)
    with pytest.raises(UserError, match=r"^teacher\.num_workers = 2: .*`krscale teach`"):
        prepare_teacher(several, dataset, CPU, lambda done, total: None)
    own = experiment(tmp_path, "teacher.num_workers=2", "teacher.weights=own")
    prepare_teacher(own, dataset, CPU, lambda done, total: None)  # nothing is trained


def test_the_number_of_workers_is_of_the_experiment_but_not_of_the_teacher(tmp_path: Path) -> None:
    one, two = experiment(tmp_path), experiment(tmp_path, "teacher.num_workers=2")
    assert one.teacher.identity() == two.teacher.identity()
    assert "num_workers" not in one.teacher.identity()
    assert one.fingerprint() != two.fingerprint()
