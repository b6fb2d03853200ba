"""What a search improves: the objectives of its studies, and the values of a trial.

Every objective but accuracy is a size of the student, known before it trains. Optuna neither keeps
the epochs of trials with several objectives nor stops such trials early; the ladder counts epochs
by itself, and the config refuses early stopping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from krscale.config import OBJECTIVES
from krscale.search.studies.trial_spec import Assignment, StudyKey


def objectives_of(key: StudyKey, objectives: Sequence[str]) -> Sequence[str]:
    """Return the objectives of one study: finals only tell how accurate the winner becomes."""
    return ("val/accuracy",) if key.final else objectives


def directions(objectives: Sequence[str]) -> list[Literal["maximize", "minimize"]]:
    """Return the direction of each objective, as Optuna wants it."""
    return [OBJECTIVES[name] for name in objectives]


def trial_values(
    objectives: Sequence[str], assignment: Assignment, metrics: Mapping[str, float]
) -> list[float]:
    """Return the values of a trial that ran to its end, in the order of the objectives.

    Args:
        objectives: By name.
        assignment: The trial, with the size of its student.
        metrics: Its last ones.
    """
    known: dict[str, float] = {
        "val/accuracy": metrics["val/accuracy"],
        "num_parameters": assignment.size.num_parameters,
        "flops": assignment.size.flops,
    }
    if assignment.latency_ms is not None:
        known["latency_ms"] = assignment.latency_ms
    return [float(known[name]) for name in objectives]


def merit(study: optuna.Study, trial: FrozenTrial) -> tuple[float, ...]:
    """Return what the best complete trial of a study has most of.

    Accuracy counts first, the other objectives among equally accurate trials, the validation loss
    last: the best trial is on the front.
    """
    gains = (v if more else -v for v, more in zip(trial.values, _maximise(study), strict=True))
    return (*gains, -float(trial.user_attrs.get("val/loss", 0.0)))


def front(study: optuna.Study) -> list[FrozenTrial]:
    """Return the complete trials that no other beats in all objectives, the most accurate first.

    Of equal ones all stay. Suggestions that broke a limit carry Optuna's constraints and are never
    complete, so they are not among them.
    """
    return sorted(study.best_trials, key=lambda trial: merit(study, trial), reverse=True)


def _maximise(study: optuna.Study) -> list[bool]:
    return [direction is StudyDirection.MAXIMIZE for direction in study.directions]
