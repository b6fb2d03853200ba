"""The learning rate in a search space: its range depends on the optimiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from krscale.config import TrainConfig, search_ranges
from krscale.config.training import optimiser_key
from krscale.errors import UserError
from krscale.search.space.conditions import Condition

RATE, OPTIMISER = "train.learning_rate", "train.optimizer"


def range_of_rate(train: TrainConfig) -> dict[str, Any]:
    """Return the learning rates to search for an optimiser without a declared range.

    The range is as wide around the experiment's own rate as SGD's range is around its default.
    """
    if _is_sgd(train.optimizer):
        return {}
    declared = search_ranges()[RATE].table()
    low, high = (declared[end] / _default() * train.learning_rate for end in ("low", "high"))
    return {"type": "float", "low": low, "high": high, "log": True}


def check_rates(
    train: TrainConfig,
    distributions: Mapping[str, BaseDistribution],
    conditions: Mapping[str, Sequence[Condition]],
    where: str,
    *,
    is_declared: bool,
) -> None:
    """Refuse a choice of optimisers that would be trained with the default rate, which is SGD's.

    The config demands a rate with every other optimiser. A space cannot distinguish a rate that the
    experiment gave from the default, so a rate that equals the default counts as not given.

    Args:
        train: The experiment's `train` section.
        distributions: Distributions of all fields of a method.
        conditions: Conditions under which each field is searched.
        where: File and field, for the error.
        is_declared: Whether the rate has the range that the field declares, which is SGD's.

    Raises:
        UserError: With the names of the optimisers, and how to give them a rate.
    """
    optimisers = distributions.get(OPTIMISER)
    given = not _is_sgd(train.optimizer) or train.learning_rate != _default()
    if given or not isinstance(optimisers, CategoricalDistribution):
        return
    own_range = RATE in distributions and not is_declared
    needed = conditions.get(RATE, ())
    without = [
        str(name)
        for name in optimisers.choices
        if not _is_sgd(str(name))
        and not (own_range and all(c.path == OPTIMISER and name in c.choices for c in needed))
    ]
    if without:
        raise UserError(
            f"{where}: {' and '.join(map(repr, without))} would be trained with a learning rate "
            f"for SGD: write a range for {RATE} that suits each, with "
            f"when = {{ {OPTIMISER!r} = {without} }} where it is not for SGD as well, or give the "
            f"experiment a rate (--set {RATE}=0.001)."
        )


def _is_sgd(optimiser: str) -> bool:
    return optimiser_key(optimiser) == "sgd"


def _default() -> float:
    default: float = TrainConfig.model_fields["learning_rate"].default
    return default
