"""A whole small search through its own command, trained in this process instead of on Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from running import in_process, overrides
from torch.utils.benchmark import Timer

from krscale.parallel import Workers
from krscale.runs.folder import student_path
from krscale.search import insight_figure, session
from krscale.search.studies.ladder import Ladder, Next
from krscale.search.studies.trial_spec import Assignment, FinalKey
from krscale.setup.build import Assets, build_training, trial_experiment
from krscale.setup.prepare import Prepared
from krscale.training.checkpoint import save_weights

SETTINGS = (
    "name=small",
    "teacher.width=8",
    "teacher.num_epochs=1",
    "views.num_views=1",
    "train.num_epochs=2",
    "ladder.capacities=['1/16']",
    "search.methods=['plain', 'kr']",
    "search.early_stopping=none",
    "search.trials_per_size=2",
    "search.num_final_seeds=1",
    "search.gpus_per_trial=0",
)


def train_here(ladder: Ladder, prepared: Prepared, *_: Any) -> None:
    """Do what Ray's workers do, one trial after the other."""
    assets = Assets.open(prepared)
    while isinstance(upcoming := ladder.next(), Assignment):
        key, config = upcoming.key, ladder.experiment
        values = {**upcoming.values, "distill.capacity": key.capacity}
        experiment = trial_experiment(config, key.method, values, upcoming.seed)
        training = build_training(experiment, assets, upcoming.size.width, Workers.alone())
        metrics: dict[str, float] = {}
        while not training.finished:
            metrics = training.run_epoch()
            ladder.report(upcoming, metrics)
        if isinstance(key, FinalKey):
            path = student_path(config.run_path, key.method, key.capacity, upcoming.seed)
            save_weights(path, training.student)
        ladder.finish(upcoming, TrialState.COMPLETE, metrics)
    assert upcoming is Next.DONE


def save_time(patch: pytest.MonkeyPatch) -> None:
    """Draw no pictures, and time students for moments: most of a command that trains nothing.

    tests/cli/test_tune.py looks at both of a search on Ray.
    """
    patch.setattr(session, "draw_curve", lambda curve, path: path.write_bytes(b""))
    patch.setattr(session, "write_interactive", lambda curves, path: path.write_bytes(b""))
    patch.setattr(insight_figure, "draw_insight", lambda insight, path: False)
    time_long = Timer.blocked_autorange
    patch.setattr(
        Timer, "blocked_autorange", lambda timer, **_: time_long(timer, min_run_time=0.01)
    )


@contextmanager
def without_ray(train: Any = train_here) -> Iterator[None]:
    """Let `krscale.tune` run its trials with `train` instead of Ray, see `save_time`."""
    with pytest.MonkeyPatch.context() as patch:
        save_time(patch)
        patch.setattr(session, "connect", lambda cluster: None)
        patch.setattr(session, "reach_storage", lambda experiment: None)
        patch.setattr(session, "check_arrival", lambda models, builders: None)
        patch.setattr(session, "num_slots", lambda *_: 1)
        patch.setattr(session, "write_on_workers", None)
        patch.setattr(session, "require_possible", lambda *_: None)
        patch.setattr(session, "run_search", train)
        yield


def search(storage: Path, *settings: str, train: Any = train_here) -> Path:
    """Run or continue the search of a storage to its end; return the run's folder."""
    with without_ray(train):
        arguments = overrides(*SETTINGS, f"storage_path={storage}", *settings)
        assert in_process("tune")([*arguments, "--quiet"]) == 0
    return storage / "small"
