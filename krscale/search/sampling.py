"""Optuna's samplers and pruners by the names of the config."""

from __future__ import annotations

from typing import Any, cast

import optuna
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from krscale.config import SearchConfig
from krscale.search.retries import was_interrupted


def make_sampler(config: SearchConfig, seed: int) -> BaseSampler:
    """Return a new sampler of the kind `search.sampler` names."""
    if config.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=num_startup(config))


def num_startup(config: SearchConfig) -> int:
    """Return after how many trials of a study its past is worth learning from.

    Optuna's default of ten would be the whole of a small budget.
    """
    return min(10, max(3, config.trials_per_rung // 4))


def make_pruner(config: SearchConfig, num_epochs: int) -> BasePruner:
    """Return the early stopping of one study, of the kind `search.early_stopping` names."""
    if config.early_stopping == "none" or config.grace_epochs >= num_epochs:
        return NopPruner()
    return _WithoutInterrupted(
        SuccessiveHalvingPruner(
            min_resource=config.grace_epochs, reduction_factor=config.reduction_factor
        )
    )


class _WithoutInterrupted(BasePruner):
    """Hides interrupted trials: each is run again, and would be compared with itself."""

    def __init__(self, pruner: BasePruner) -> None:
        self.pruner = pruner

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return self.pruner.prune(cast(optuna.Study, _Without(study)), trial)


class _Without:
    """A study as pruners see it."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study

    def get_trials(self, *arguments: Any, **options: Any) -> list[FrozenTrial]:
        found = self._study.get_trials(*arguments, **options)
        return [trial for trial in found if not was_interrupted(trial)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)
