"""Optuna's samplers, by the names of `search.sampler`; they choose the settings of each trial."""

from __future__ import annotations

import importlib.util
import math
import warnings
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from krscale.config import SearchConfig
from krscale.errors import UserError
from krscale.search.space.space import SearchSpace
from krscale.search.studies.cmaes_state import PlainCmaEs

EXPLORE_EVERY = 10
"""One in this many trials of TPE is drawn at random."""
_MAX_GRID = 1_000_000
_MAX_POPULATION = 50
"""Optuna's own value for NSGA-II; a small budget needs several generations of fewer trials."""


def make_sampler(config: SearchConfig, space: SearchSpace, method: str, seed: int) -> BaseSampler:
    """Return a new sampler, of the kind in `search.sampler`, for one study of a method.

    TPE uses pruned trials and ranks them below every trial that ended; the other samplers learn
    only from complete trials. So none of them takes the accuracy of a pruned training for a final
    one.

    Raises:
        UserError: If the kind needs a package that is not installed, or cannot search this space.
    """
    start = num_startup(config)
    match config.sampler:
        case "tpe":
            with warnings.catch_warnings():
                # Optuna calls `group` experimental; conditional spaces need it.
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return _ExploringTPE(
                    seed=seed, n_startup_trials=start, multivariate=True, constant_liar=True,
                    group=space.is_conditional(method),
                )  # fmt: skip
        case "gp":
            return optuna.samplers.GPSampler(
                seed=seed, n_startup_trials=start, warn_independent_sampling=False
            )
        case "cmaes":
            _require("cmaes", config.sampler)
            return PlainCmaEs(seed=seed, n_startup_trials=start, warn_independent_sampling=False)
        case "nsgaii":
            population = min(_MAX_POPULATION, max(4, config.trials_per_size // 4))
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=population)
        case "grid":
            return _Grid(grid(space, method), seed=config.seed % 2**32)
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)


def check_sampler(config: SearchConfig, space: SearchSpace) -> None:
    """Refuse a sampler that cannot search a space, before the teacher trains.

    Raises:
        UserError: If it needs a package that is not installed, or if the space has no grid.
    """
    for method in config.methods:
        if config.sampler == "grid":
            grid(space, method)  # Optuna's sampler would list all of its points
        else:
            make_sampler(config, space, method, seed=0)


def num_startup(config: SearchConfig) -> int:
    """Return the number of trials of a study after which a sampler should learn from them.

    Optuna's default of ten would take up the whole of a small budget.

    Example:
        >>> [num_startup(SearchConfig(trials_per_size=number)) for number in (4, 20, 100)]
        [3, 5, 10]
    """
    return min(10, max(3, config.trials_per_size // 4))


def grid(space: SearchSpace, method: str) -> dict[str, list[Any]]:
    """Return the values of every field of a method.

    Raises:
        UserError: If a field has no finite number of values, if fields depend on each other, or if
            the grid has too many points.

    Example:
        >>> fields = {"train.num_epochs": IntDistribution(2, 6, step=2)}
        >>> fields["train.momentum"] = FloatDistribution(0.5, 0.9, step=0.2)
        >>> grid(SearchSpace("my.toml", {"kd": fields}), "kd")
        {'train.num_epochs': [2, 4, 6], 'train.momentum': [0.5, 0.7, 0.9]}
    """
    if space.is_conditional(method):
        raise UserError(
            f"search.sampler: 'grid' needs fields that do not depend on each other; those of "
            f"{method} in {space.source} do. Allowed here: every other sampler."
        )
    values: dict[str, list[Any]] = {}
    for path, distribution in space.by_method[method].items():
        if isinstance(distribution, CategoricalDistribution):
            values[path] = list(distribution.choices)
        elif isinstance(distribution, IntDistribution):
            values[path] = list(range(distribution.low, distribution.high + 1, distribution.step))
        elif isinstance(distribution, FloatDistribution) and distribution.step is not None:
            count = round((distribution.high - distribution.low) / distribution.step) + 1
            steps = (distribution.low + i * distribution.step for i in range(count))
            values[path] = [min(value, distribution.high) for value in steps]  # 0.1 + 2 * 0.1 > 0.3
        else:
            raise UserError(
                f"search.sampler: 'grid' needs a finite number of values, and {space.source}: "
                f"{path} has none. Give it a step, or choices."
            )
    num_points = math.prod(map(len, values.values()))
    if num_points > _MAX_GRID:
        raise UserError(
            f"search.sampler: the grid of {method} in {space.source} has {num_points:,} points; "
            f"at most {_MAX_GRID:,} are allowed."
        )
    return values


class _ExploringTPE(optuna.samplers.TPESampler):
    """Optuna's TPE, with one random trial at regular intervals.

    TPE alone can get stuck: a few of many long studies never came near the best, and kept trying
    what random search had long left (`docs/log.md`, 2026-11-25). Random trials are a way out of any
    such region. Hyperband with TPE uses them for the same reason (Falkner, Klein and Hutter,
    *BOHB*, ICML 2018), with a larger share.
    """

    def __init__(self, *, seed: int, **options: Any) -> None:
        super().__init__(seed=seed, **options)
        self._at_random = optuna.samplers.RandomSampler(seed=seed)

    def reseed_rng(self) -> None:
        super().reseed_rng()
        self._at_random.reseed_rng()

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if _explores(trial):
            return {}  # then every parameter is sampled independently, below
        return super().sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if _explores(trial):
            return self._at_random.sample_independent(study, trial, param_name, param_distribution)
        return super().sample_independent(study, trial, param_name, param_distribution)


def _explores(trial: FrozenTrial) -> bool:
    return trial.number % EXPLORE_EVERY == EXPLORE_EVERY - 1


class _Grid(optuna.samplers.GridSampler):
    """Optuna's grid, for studies run with ask and tell."""

    def after_trial(self, *_: Any) -> None:
        """Do nothing; Optuna would stop its own loop here, but the ladder counts the points."""


def num_grid_points(study: optuna.Study) -> int | None:
    """Return how many trials a study's grid has; None if it is not searched on a grid."""
    if not isinstance(study.sampler, _Grid):
        return None
    return math.prod(map(len, study.sampler._search_space.values()))


def grid_point(study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
    """Return the point of the grid that a trial was given; empty if it was given none."""
    number = trial.system_attrs.get("grid_id")
    if number is None or not isinstance(study.sampler, _Grid):
        return {}
    names, points = study.sampler._param_names, study.sampler._all_grids
    known = isinstance(number, int) and 0 <= number < len(points)
    return dict(zip(names, points[number], strict=True)) if known else {}


def num_planned(config: SearchConfig, space: SearchSpace, method: str) -> int:
    """Return the planned trials of each study of a method: a grid may have fewer points.

    Raises:
        UserError: If the space should be searched on a grid but cannot be.

    Example:
        >>> fields = {"train.num_epochs": IntDistribution(2, 6, step=2)}
        >>> space = SearchSpace("my.toml", {"kd": fields})
        >>> num_planned(SearchConfig(sampler="grid", trials_per_size=8), space, "kd")
        3
    """
    if config.sampler != "grid":
        return config.trials_per_size
    points = math.prod(map(len, grid(space, method).values()))
    return min(config.trials_per_size, points)


def is_used_up(study: optuna.Study) -> bool:
    """Return whether a study is searched on a grid whose points have all been asked for.

    Optuna's sampler would then repeat points.
    """
    if not isinstance(study.sampler, _Grid):
        return False
    points = {t.system_attrs.get("grid_id") for t in study.get_trials(deepcopy=False)} - {None}
    return len(points) >= (num_grid_points(study) or 0)


def _require(package: str, sampler: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"search.sampler: {sampler!r} needs the package {package}. Install it with "
            f"pip install 'krscale[samplers]', or choose another sampler."
        )
