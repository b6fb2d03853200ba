"""What each worker of a group does, without Ray."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accumulated_training import accumulated_training

from krscale.config import load
from krscale.parallel import Workers
from krscale.search.on_ray import trial as trial_module
from krscale.search.on_ray.rank import Rank
from krscale.search.on_ray.trial import StudentTrial
from krscale.search.studies.checkpoints import Keeper, checkpoint_path
from krscale.training.loop import Training

CONFIG = {
    "name": "plain/1-4/trial-1", "continues": "plain/1-4/trial-0", "seed": 0, "method": "plain",
    "capacity": "1/4", "kind": "trial", "milestones": (), "values": {}, "width": 1,
}  # fmt: skip


class OverTheWire:
    """A group with one other worker, which receives arguments as bytes and has no file."""

    workers = Workers()

    def __init__(self, rank: Rank) -> None:
        self.rank = rank

    def together(self, method: str, *arguments: Any, own: Callable[[], Any]) -> Any:
        if method != "build":
            getattr(self.rank, method)(*pickle.loads(pickle.dumps(arguments)))
        return own()


class Twice(Training):
    """A training that is not finished after its one epoch."""

    finished: ClassVar[bool] = False


def test_a_worker_without_the_checkpoint_goes_on_where_the_first_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine may lack the file, or have one of an earlier epoch."""
    torch.set_num_threads(1)

    def built() -> Training:
        training = accumulated_training(Workers(), 1, tmp_path / "data")
        training.__class__ = Twice
        return training

    experiment = load(None, [f"storage_path={tmp_path / 'runs'}"])
    before = built()
    metrics = before.run_epoch()
    path = checkpoint_path(experiment.run_path, CONFIG["continues"])
    Keeper(path, 0.0, clock=lambda: 0.0).keep(before, [metrics])
    assert path.is_dir()

    other = Rank.__new__(Rank)
    other.training = built()
    first = StudentTrial.__new__(StudentTrial)
    first.experiment, first.group, first.assets = experiment, OverTheWire(other), None  # type: ignore[assignment]
    monkeypatch.setattr(trial_module, "build_trial", lambda *arguments: built())
    first._begin(dict(CONFIG))
    assert other.training.epoch == first.training.epoch == 1
    for name, value in before.student.state_dict().items():
        assert torch.equal(other.training.student.state_dict()[name], value), name
