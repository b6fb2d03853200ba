"""Helpers for drills of searches: a small search in this process, and checks of its results."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
import ray
from drilling import Drill
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from running import PATHS, end_ray, give_own_token

from krscale.cluster.connect import SETTINGS
from krscale.config import Experiment, load

SMALL = (
    "teacher.width=4",
    "teacher.num_epochs=1",
    "views.num_views=2",
    "ladder.capacities=['1/4']",
    "train.num_epochs=6",
    "search.methods=['plain']",
    "search.trials_per_size=3",
    "search.num_final_seeds=1",
    "search.sampler=grid",
    "search.early_stopping=none",
    "search.checkpoint_seconds=0",
    "tracking.enabled=false",
)


def fates(folder: Path, *names: str, settings: tuple[str, ...] = ()) -> Experiment:
    """Return a search of one `plain` trial for every fate of `troubled_student`."""
    space = folder / "space.toml"
    choices = ", ".join(f'"{name}"' for name in names)
    space.write_text(
        f'[common."student.options.fate"]\ntype = "categorical"\nchoices = [{choices}]\n'
    )
    return load(
        None,
        [
            *SMALL,
            f"storage_path={folder}",
            f"search.space={space}",
            "student.model=troubled_student:Troubled",
            f"student.options={{fate = 'calm', folder = '{folder}'}}",
            f"search.trials_per_size={len(names)}",
            *settings,
        ],
    )


@contextmanager
def own_ray(num_cpus: int, *, session: Path | None = None, **environment: str) -> Iterator[None]:
    """Start a private Ray with these settings, its session in a folder; end it afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**SETTINGS, "PYTHONPATH": PATHS, **environment}.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        give_own_token(patch)
        ray.init(
            address="local", num_cpus=num_cpus, include_dashboard=False,
            logging_level="ERROR", log_to_driver=False,
            _temp_dir=str(session) if session else None,
        )  # fmt: skip
        try:
            yield
        finally:
            end_ray()


def trials_of(run: Path) -> dict[str, list[FrozenTrial]]:
    """Return the trials of every study of a run, from its journal."""
    storage = JournalStorage(JournalFileBackend(str(run / "journal.log")))
    studies: list[optuna.study._frozen.FrozenStudy] = storage.get_all_studies()
    return {study.study_name: storage.get_all_trials(study._study_id) for study in studies}


def attempts(run: Path, fate: str) -> list[FrozenTrial]:
    """Return every attempt at the tuning trial of one fate, in order."""
    found = [trial for name, ts in trials_of(run).items() if "final" not in name for trial in ts]
    return [trial for trial in found if trial.params.get("student.options.fate") == fate]


class Report:
    """Records what a drill injects and what holds; `done` fails if something did not hold."""

    def __init__(self, drill: Drill, injected: str) -> None:
        self.drill, self.broken = drill, list[str]()
        drill.injected(injected)

    def must_hold(self, statement: str, holds: object) -> None:
        """Record a statement and whether it holds."""
        self.drill.must_hold(statement)
        if holds:
            self.drill.held(statement)
        else:
            self.broken.append(statement)

    def done(self) -> None:
        """Fail if a statement did not hold."""
        assert not self.broken, self.broken
