"""Early stopping: which trials are stopped, at which epoch, and why.

The rules are Optuna's, by the names of `search.early_stopping`. Only this file chooses them, asks
them, and puts their decision into words. A trial is compared with trials of its own study, that is,
of one method at one size.
"""

from __future__ import annotations

import math
import statistics
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, Trial, TrialState

from krscale.config import SearchConfig
from krscale.search.studies.retries import was_interrupted
from krscale.search.studies.samplers import num_startup

STOPPED = "stopped"
"""User attribute of a trial that early stopping ended: `Stop.text`."""


@dataclass(frozen=True)
class Stop:
    """Why a trial was stopped.

    Attributes:
        rule: The value of `search.early_stopping`.
        epoch: The last epoch that the trial trained.
        num_epochs: Number of epochs of a full training.
        value: The trial's validation accuracy that was compared.
        threshold: The lowest accuracy that would have been enough.
        competitors: Where the threshold comes from, in words.
    """

    rule: str
    epoch: int
    num_epochs: int
    value: float
    threshold: float
    competitors: str

    @property
    def text(self) -> str:
        """The reason as one line."""
        return (
            f"{self.rule} stopped it after epoch {self.epoch} of {self.num_epochs}: validation "
            f"accuracy {_percent(self.value)} is below {_percent(self.threshold)}, "
            f"{self.competitors}"
        )


def make_pruner(config: SearchConfig, num_epochs: int) -> BasePruner:
    """Return the pruner of one study, of the kind in `search.early_stopping`."""
    if config.early_stopping == "none" or config.grace_epochs >= num_epochs:
        return NopPruner()
    if config.early_stopping == "median":
        return _Median(config)
    return _SuccessiveHalving(config)


def milestones(config: SearchConfig, num_epochs: int) -> tuple[int, ...]:
    """Return the epochs at which early stopping decides; a report must not go past one.

    Example:
        >>> config = SearchConfig(early_stopping="asha", grace_epochs=2, reduction_factor=3)
        >>> milestones(config, 27), milestones(config, 2)
        ((2, 6, 18), ())
    """
    if config.early_stopping == "none":
        return ()
    if config.early_stopping == "median":
        return tuple(range(config.grace_epochs, num_epochs))
    found: list[int] = []
    epoch = config.grace_epochs
    while epoch < num_epochs:
        found.append(epoch)
        epoch *= config.reduction_factor
    return tuple(found)


def expected_share(config: SearchConfig, num_epochs: int) -> float:
    """Return the share of its epochs that a trial is expected to train, on average.

    Each milestone of ASHA keeps one trial in `reduction_factor`. The rule `median` stops half of
    the trials at some point after their grace epochs.

    Example:
        >>> config = SearchConfig(early_stopping="asha", grace_epochs=3, reduction_factor=3)
        >>> round(expected_share(config, 27), 3)  # (3 + 6 / 3 + 18 / 9) / 27
        0.259
    """
    grace = min(1.0, config.grace_epochs / num_epochs)
    if config.early_stopping == "none":
        return 1.0
    if config.early_stopping == "median":
        return (1.0 + grace) / 2
    reached, kept, before = 0.0, 1.0, 0
    for epoch in (*milestones(config, num_epochs), num_epochs):
        reached, kept, before = (
            reached + kept * (epoch - before),
            kept / config.reduction_factor,
            epoch,
        )
    return reached / num_epochs


def find_stop(trial: Trial, num_epochs: int) -> Stop | None:
    """Return why a trial should stop now, after its reports so far; None if it continues.

    Args:
        trial: A running trial of a study with one objective and a pruner made by `make_pruner`.
        num_epochs: Number of epochs of a full training.
    """
    if not trial.should_prune():
        return None
    pruner = trial.study.pruner
    assert isinstance(pruner, _Explaining)  # noqa: S101 - NopPruner stops nothing
    frozen = trial.study.get_trials(deepcopy=False)[trial.number]
    return pruner.explain(trial.study, frozen, num_epochs)


class _Explaining(BasePruner):
    """One of Optuna's pruners, with an explanation of its decisions.

    Interrupted trials are hidden from it: each is run again and would be compared with itself.
    """

    rule: str

    def __init__(self, pruner: BasePruner) -> None:
        self.pruner = pruner

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return self.pruner.prune(cast(optuna.Study, _WithoutInterrupted(study)), trial)

    def explain(self, study: optuna.Study, trial: FrozenTrial, num_epochs: int) -> Stop:
        """Return why `prune` has just returned True."""
        others = [
            other
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number and not was_interrupted(other)
        ]
        value, threshold, competitors = self.compared(trial, others)
        epoch = trial.last_step or 0
        return Stop(self.rule, epoch, num_epochs, value, threshold, competitors)

    @abstractmethod
    def compared(
        self, trial: FrozenTrial, others: Sequence[FrozenTrial]
    ) -> tuple[float, float, str]:
        """Return the trial's value, the threshold it missed, and the origin of the threshold."""


class _SuccessiveHalving(_Explaining):
    """ASHA: each milestone lets one in `reduction_factor` of the trials that reached it continue.

    Li et al., *A System for Massively Parallel Hyperparameter Tuning*, MLSys 2020.
    """

    rule = "asha"

    def __init__(self, config: SearchConfig) -> None:
        self.factor = config.reduction_factor
        super().__init__(
            SuccessiveHalvingPruner(
                min_resource=config.grace_epochs, reduction_factor=config.reduction_factor
            )
        )

    def compared(
        self, trial: FrozenTrial, others: Sequence[FrozenTrial]
    ) -> tuple[float, float, str]:
        # Optuna records each trial's value at each milestone; the last one stopped this trial.
        reached = [name for name in trial.system_attrs if name.startswith("completed_rung_")]
        milestone = max(reached, key=lambda name: int(name.rpartition("_")[2]))
        value = float(trial.system_attrs[milestone])
        values = [value, *(float(o.system_attrs[milestone]) for o in others
                           if milestone in o.system_attrs)]  # fmt: skip
        num_kept = max(1, len(values) // self.factor)
        threshold = sorted(values, reverse=True)[num_kept - 1]
        which = "the best" if num_kept == 1 else f"the last of the best {num_kept}"
        return value, threshold, f"{which} of {len(values)} trials at this epoch"


class _Median(_Explaining):
    """Stops a trial whose best value is below the median of the complete trials at that epoch."""

    rule = "median"

    def __init__(self, config: SearchConfig) -> None:
        super().__init__(
            MedianPruner(n_startup_trials=num_startup(config), n_warmup_steps=config.grace_epochs)
        )

    def compared(
        self, trial: FrozenTrial, others: Sequence[FrozenTrial]
    ) -> tuple[float, float, str]:
        whole = [o.intermediate_values for o in others if o.state is TrialState.COMPLETE]
        values = [reported[trial.last_step] for reported in whole if trial.last_step in reported]
        best = max(v for v in trial.intermediate_values.values() if not math.isnan(v))
        of = f"the median of {len(values)} whole trials at this epoch"
        return best, statistics.median(values), of


class _WithoutInterrupted:
    """The view of a study for pruners, without interrupted trials."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study

    def get_trials(self, *arguments: Any, **options: Any) -> list[FrozenTrial]:
        found = self._study.get_trials(*arguments, **options)
        return [trial for trial in found if not was_interrupted(trial)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:.2f} %"
