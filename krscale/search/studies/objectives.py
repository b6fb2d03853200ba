"""The objectives of a search's studies, and the values of a trial.

An objective is a metric on the validation split (`krscale/metrics.py`), or a size of the student,
which is known before it trains. For trials with several objectives, Optuna neither keeps epochs nor
stops early; the ladder counts epochs itself, and the config refuses early stopping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from krscale.config import objective_directions
from krscale.errors import UserError
from krscale.metrics import METRICS, Direction, metric_key, val_metrics
from krscale.search.studies.trial_spec import Assignment


def directions(objectives: Sequence[str]) -> list[Direction]:
    """Return the direction of each objective, in Optuna's terms.

    Example:
        >>> directions(["val/accuracy", "flops"])
        ['maximize', 'minimize']
    """
    return [objective_directions()[name] for name in objectives]


def check_objectives(objectives: Sequence[str], num_classes: int) -> None:
    """Refuse an objective that is meaningless for so few classes.

    Raises:
        UserError: With the name of the objective.

    Example:
        >>> check_objectives(["val/top5_accuracy"], num_classes=5)
        Traceback (most recent call last):
        krscale.errors.UserError: ...: 'val/top5_accuracy' needs at least 6 classes; ...
    """
    for name in objectives:
        metric = val_metrics().get(name)
        if metric and num_classes < metric.min_classes:
            raise UserError(
                f"search.objectives: {name!r} needs at least {metric.min_classes} classes; these "
                f"images have {num_classes}."
            )


def trial_values(
    objectives: Sequence[str], assignment: Assignment, metrics: Mapping[str, float]
) -> list[float]:
    """Return the values of a trial that ran to its end, in the order of the objectives.

    Args:
        objectives: Names of the objectives.
        assignment: The trial, which contains the size of its student.
        metrics: The trial's last metrics.
    """
    known: dict[str, float] = {
        **metrics,
        "num_parameters": assignment.size.num_parameters,
        "flops": assignment.size.flops,
    }
    if assignment.latency_ms is not None:
        known["latency_ms"] = assignment.latency_ms
    return [float(known[name]) for name in objectives]


def merit(study: optuna.Study, trial: FrozenTrial) -> tuple[float, ...]:
    """Return the sorting key by which the best complete trial of a study is the largest.

    Accuracy comes first, then the other objectives, then the metrics that break ties. The best
    trial is on the front.

    Example:
        >>> study = optuna.create_study(directions=directions(["val/accuracy", "flops"]))
        >>> recorded = {"values": [0.9, 400.0], "user_attrs": {"val/loss": 0.5}}
        >>> merit(study, optuna.trial.create_trial(**recorded))
        (0.9, -400.0, -0.5)
    """
    gains = (v if more else -v for v, more in zip(trial.values, _maximise(study), strict=True))
    ties = [metric for metric in METRICS.values() if metric.breaks_ties]
    # A journal may be older than a metric.
    recorded = (float(trial.user_attrs.get(metric_key("val", metric), 0.0)) for metric in ties)
    return (*gains, *(m.gain(value) for m, value in zip(ties, recorded, strict=True)))


def front(study: optuna.Study) -> list[FrozenTrial]:
    """Return the complete trials that no other beats in all objectives, from the most accurate.

    Equal trials are all kept. Suggestions that broke a limit have Optuna constraints and are never
    complete, so they are not included.

    Example:
        >>> study = optuna.create_study(directions=directions(["val/accuracy", "flops"]))
        >>> for values in ([0.8, 100.0], [0.9, 400.0], [0.7, 300.0]):
        ...     study.add_trial(optuna.trial.create_trial(values=values))
        >>> [trial.values for trial in front(study)]  # the first beats the third in both
        [[0.9, 400.0], [0.8, 100.0]]
    """
    return sorted(study.best_trials, key=lambda trial: merit(study, trial), reverse=True)


def _maximise(study: optuna.Study) -> list[bool]:
    return [direction is StudyDirection.MAXIMIZE for direction in study.directions]
