"""A ladder whose trials are simulated: no Ray, no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from krscale.config import Experiment, load
from krscale.search.space.space import SearchSpace, find_space, load_space
from krscale.search.studies.ladder import Ladder, Next
from krscale.search.studies.trial_spec import Assignment, StudyKey
from krscale.setup.sizes import StudentSize

__all__ = [
    "METHODS", "SIZES", "Assignment", "Ladder", "Next", "experiment", "ladder", "next_of", "play",
    "play_all", "quality",
]  # fmt: skip

SIZES = (StudentSize("1/64", 2, 1000, 10_000), StudentSize("1/4", 8, 16_000, 160_000))
METHODS = ("plain", "kr")
_SPACES: dict[tuple[str, bytes], SearchSpace] = {}


def experiment(**changes: object) -> Experiment:
    """A small search of two methods, with changes by dotted name."""
    settings = {
        "search.methods": list(METHODS),
        "search.trials_per_size": 5,
        "search.num_final_seeds": 2,
        "search.grace_epochs": 2,
        "search.transfer": False,
        "train.num_epochs": 4,
        **changes,
    }
    words = {True: "true", False: "false"}
    return load(
        None,
        [
            f"{key}={words[value] if isinstance(value, bool) else repr(value)}".replace("'", '"')
            for key, value in settings.items()
        ],
    )


def ladder(folder: Path, config: Experiment, listeners: tuple = (), **options: Any) -> Ladder:
    """Open the ladder of a folder, as a new process would."""
    return Ladder(folder / "journal.log", config, space_of(config), SIZES, listeners, **options)


def space_of(config: Experiment) -> SearchSpace:
    """Read the space of an experiment, once: each field is tried on the whole experiment."""
    key = config.model_dump_json(), find_space(config.search.space).read_bytes()
    if key not in _SPACES:
        _SPACES[key] = load_space(config, 6)
    return _SPACES[key]


def quality(assignment: Assignment) -> float:
    """Better with a learning rate near 0.1: a stand-in for validation accuracy."""
    return 1.0 - abs(float(assignment.values.get("train.learning_rate", 0.1)) - 0.1)


def play(found: Ladder, assignment: Assignment) -> TrialState:
    """Run a trial to its end as the actor would."""
    num_epochs = found.experiment.train.num_epochs
    metrics: dict[str, float] = {}
    for epoch in range(1, num_epochs + 1):
        accuracy = quality(assignment) * epoch / num_epochs
        metrics = {"val/accuracy": accuracy, "val/loss": 1 - accuracy, "epoch": float(epoch)}
        if found.report(assignment, metrics) and epoch < num_epochs:
            found.finish(assignment, TrialState.PRUNED, metrics)
            return TrialState.PRUNED
    found.finish(assignment, TrialState.COMPLETE, metrics)
    return TrialState.COMPLETE


def play_all(found: Ladder) -> list[Assignment]:
    """Run the search to its end on one worker; return its trials in order."""
    played: list[Assignment] = []
    while isinstance(upcoming := found.next(), Assignment):
        played.append(upcoming)
        play(found, upcoming)
    assert upcoming is Next.DONE
    return played


def next_of(found: Ladder, key: StudyKey) -> Assignment:
    """Play the other studies until one trial of this one is handed out."""
    while isinstance(upcoming := found.next(), Assignment):
        if upcoming.key == key:
            return upcoming
        play(found, upcoming)
    raise AssertionError("no trial of this study was left")
