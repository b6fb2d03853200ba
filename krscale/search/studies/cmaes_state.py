"""Optuna's CMA-ES, except that its state is read as plain numbers.

Optuna keeps the state of the search as a pickle in the journal of a study and unpickles it at the
next trial. So anyone who wrote a run folder could run any code on the machine that continues it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from krscale.data.reading.pickled_arrays import NumbersOnly, finished
from krscale.errors import UserError
from krscale.pickle_rules import Global, RefusedError
from krscale.plain_pickle import read_plain

_CMA = Global("cmaes._cma", "CMA")
_MAX_DIM = 1000
_MIN_POPULATION, _MAX_POPULATION = 4, 100_000  # CMA-ES has 4 + 3 ln(dimensions)


class PlainCmaEs(optuna.samplers.CmaEsSampler):
    """Optuna's CMA-ES, with the optimiser of a journal rebuilt from numbers."""

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        for trial in reversed(completed_trials):
            parts = {
                key: value
                for key, value in trial.system_attrs.items()
                if key.startswith(self._attr_key_optimizer)
            }
            if parts:
                return _restored(parts, self._attr_key_optimizer, trial.number)
        return None


def read_cma(content: bytes) -> Any:
    """Return the optimiser that `pickle.dumps` has written, rebuilt from the numbers in it.

    Args:
        content: A pickle of a `cmaes.CMA`.

    Raises:
        RefusedError: If it is anything else.
    """
    found = read_plain(content, _CmaOnly(len(content), "search with cmaes", scalars=True))[0]
    if not isinstance(found, _State):
        raise RefusedError("holds no optimiser")
    values = finished(found.values)
    num_dims, population = values.get("_n_dim"), values.get("_popsize")
    if type(num_dims) is not int or not 1 <= num_dims <= _MAX_DIM:
        raise RefusedError(f"has no number of dimensions from 1 to {_MAX_DIM:,}")
    if type(population) is not int or not _MIN_POPULATION <= population <= _MAX_POPULATION:
        raise RefusedError(f"has no population from {_MIN_POPULATION} to {_MAX_POPULATION:,}")
    optimiser = importlib.import_module("cmaes").CMA(
        mean=np.zeros(num_dims), sigma=1.0, population_size=population
    )
    pattern = optimiser.__getstate__()
    _check(values, pattern, num_dims)
    # Copied, because the arrays that were read are views of the bytes and must not be written to.
    state = {n: v.copy() if isinstance(v, np.ndarray) else v for n, v in values.items()}
    optimiser.__setstate__(state)
    return optimiser


class _State:
    """Placeholder for the optimiser while its pickle is read."""

    def __init__(self) -> None:
        self.values: Mapping[str, Any] = {}


class _CmaOnly(NumbersOnly):
    """Accepts the optimiser in addition to numbers and arrays of numbers."""

    def find(self, found: Global) -> object:
        return found if found == _CMA else super().find(found)

    def new(self, kind: object, arguments: tuple[Any, ...]) -> object:
        return _State() if kind == _CMA and not arguments else super().new(kind, arguments)

    def build(self, value: object, state: object) -> None:
        if isinstance(value, _State) and isinstance(state, dict):
            value.values = state
        else:
            super().build(value, state)


def _restored(parts: Mapping[str, Any], key: str, number: int) -> Any:
    try:
        text = "".join(parts[f"{key}:{part}"] for part in range(len(parts)))
        return read_cma(bytes.fromhex(text))
    except (KeyError, TypeError, ValueError) as error:
        found = error if isinstance(error, RefusedError) else "is damaged"
        raise UserError(
            f"journal: trial {number}: the state of search.sampler = 'cmaes' is not what a search "
            f"writes: it {found}. Another sampler goes on without it."
        ) from None


def _check(values: Mapping[str, Any], pattern: Mapping[str, Any], num_dims: int) -> None:
    """Refuse values whose form differs from those of a new optimiser of the same size."""
    optional = {"_D": (num_dims,), "_B": (num_dims, num_dims), "_bounds": (num_dims, 2)}
    if values.keys() != pattern.keys():
        raise RefusedError(f"has other values: {', '.join(sorted(map(str, values))[:50])}")
    for name, value in values.items():
        like = pattern[name]
        shape = optional.get(name, like.shape if isinstance(like, np.ndarray) else None)
        if isinstance(value, np.ndarray):
            fits = value.shape == shape and value.dtype == np.float64
        else:
            fits = value is None if name in optional else type(value) in (bool, int, float)
            fits = fits and (name in optional or shape is None)
        if not fits:
            raise RefusedError(f"has {name} of another form")
