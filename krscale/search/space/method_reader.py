"""Read the fields of one method in a search space, and try them on the experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from krscale.config import Experiment, with_values
from krscale.config.training import optimiser_key
from krscale.errors import UserError
from krscale.search.space.conditions import (
    Condition,
    allowed_values,
    check_condition,
    in_order,
    read_conditions,
)
from krscale.search.space.distributions import (
    DEFAULT,
    extremes,
    read_distribution,
    with_default_range,
)
from krscale.search.space.fields import check_path, own_value
from krscale.search.space.learning_rate import OPTIMISER, RATE, check_rates, range_of_rate
from krscale.search.space.unused import Surroundings, check_used

Check = Callable[[Experiment], None]
"""Raises a `UserError` for an experiment that a trial could not run."""
_TRIED_WITH: Mapping[str, str] = {
    RATE: OPTIMISER,
    "train.momentum": OPTIMISER,
    "train.weight_decay": OPTIMISER,
    "train.gradient_accumulation": "train.global_batch_size",
}
"""Fields whose validity depends on another field. If that field is searched, too, they are tried
with all of its values."""


@dataclass
class MethodReader:
    """Reads the fields of one method and collects all mistakes, so that they are reported together.

    Attributes:
        path: File of the space.
        table_of: Field -> name of the table that contains it.
        method: Name of the method.
        experiment: The experiment; its own values are the centre.
        num_taps: Number of the teacher's taps.
        check: Called on the experiment with each field's extreme values.
        distributions: Distributions that were read, in the order in which trials ask for them.
        conditions: Conditions under which each field is searched.
        mistakes: One line each.
        refused: The fields with mistakes.
    """

    path: Path
    table_of: Mapping[str, str]
    method: str
    experiment: Experiment
    num_taps: int
    check: Check
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)
    conditions: dict[str, tuple[Condition, ...]] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)

    def read(self, fields: Mapping[str, Any]) -> None:
        """Fill `distributions`, in the order in which trials ask for them, and `conditions`.

        If one step finds a mistake, the later steps are skipped, so that each fault is reported
        once.
        """
        self._each(fields, self._read_field)
        self._each(fields, self._check_conditions)
        self._sort()
        partners = {dotted: fields[dotted] for dotted in _TRIED_WITH.values() if dotted in fields}
        self._each({**partners, **fields}, self._check_values)
        if OPTIMISER in fields:
            self._each({OPTIMISER: fields}, self._check_rates)

    def _read_field(self, dotted: str, spec: Any) -> None:
        where = self._where(dotted)
        check_path(dotted, self.method, where)
        spec = {"type": DEFAULT} if spec == DEFAULT else spec
        spec = dict(spec) if isinstance(spec, Mapping) else {}
        when = spec.pop("when", None)
        if dotted == RATE and spec.get("type") == DEFAULT:
            spec |= range_of_rate(self.experiment.train)
        spec = with_default_range(spec, dotted, where)
        self.distributions[dotted] = read_distribution(spec, self.num_taps, where)
        self.conditions[dotted] = (
            () if when is None else read_conditions(when, self.num_taps, where)
        )

    def _check_conditions(self, dotted: str, _spec: Any) -> None:
        for condition in self.conditions[dotted]:
            check_condition(condition, self.distributions, self._where(dotted))
        content = self.experiment.model_dump(mode="python")
        around = Surroundings(self.distributions, self.conditions, content)
        check_used(dotted, around, self._where(dotted))

    def _check_values(self, dotted: str, _spec: Any) -> None:
        where, distribution = self._where(dotted), self.distributions[dotted]
        accepted: list[tuple[Any, Any]] = []
        surroundings = self._surroundings(dotted)
        for value in extremes(distribution):
            for others in surroundings:
                changed = self._try({**others, dotted: value}, where, dotted)
            accepted.append((value, _meaning(changed, dotted)))
        if isinstance(distribution, CategoricalDistribution):
            _refuse_same(accepted, where)

    def _try(self, values: Mapping[str, Any], where: str, dotted: str) -> Experiment:
        """Return the experiment with these values, or refuse the field `dotted`."""
        table = f"{self.path}: {self.table_of[dotted]}"
        try:
            changed = with_values(self.experiment, {**values, "distill.method": self.method}, table)
            self.check(changed)
        except UserError as error:
            text = str(error)
            if text.startswith(f"{where}: "):  # the error of the config already names the field
                raise
            others = [f"{path} = {v!r}" for path, v in values.items() if path != dotted]
            beside = f" with {' and '.join(others)}" if others else ""
            text = text.removeprefix(f"{table}: ")
            raise UserError(f"{where} = {values[dotted]!r}{beside}: {text}") from None
        return changed

    def _surroundings(self, dotted: str) -> list[dict[str, Any]]:
        """Return the values of other fields with which to try each value of this field."""
        required, other = self._required(dotted), _TRIED_WITH.get(dotted, "")
        if other not in self.distributions or other in self.refused:
            return [required]
        beside = self._required(other) | required
        needed = [condition for condition in self.conditions[dotted] if condition.path == other]
        allowed = allowed_values(needed, self.distributions[other])
        found = [beside | {other: value} for value in allowed]
        stays = other not in required and bool(self.conditions[other])  # at its own value
        return [*([required] if stays else []), *found]

    def _check_rates(self, dotted: str, fields: Mapping[str, Any]) -> None:
        spec = fields.get(RATE)
        kind = spec.get("type") if isinstance(spec, Mapping) else spec
        check_rates(
            self.experiment.train,
            self.distributions,
            self.conditions,
            self._where(dotted),
            is_declared=kind == DEFAULT,
        )

    def _required(self, dotted: str) -> dict[str, Any]:
        """Return values of other fields that satisfy the conditions of this field.

        Raises:
            UserError: If there are none, because conditions exclude each other.
        """
        needed: dict[str, list[Condition]] = {}
        waiting = [dotted]
        while waiting:
            for condition in self.conditions[waiting.pop()]:
                needed.setdefault(condition.path, []).append(condition)
                waiting.append(condition.path)
        values: dict[str, Any] = {}
        for path, conditions in needed.items():
            allowed = allowed_values(conditions, self.distributions[path])
            if not allowed:
                raise UserError(
                    f"{self._where(dotted)}: when: these never hold together: "
                    f"{' and '.join(dict.fromkeys(map(str, conditions)))}."
                )
            values[path] = allowed[0]
        return values

    def _sort(self) -> None:
        if self.mistakes:
            return
        try:
            order = in_order(self.conditions, str(self.path))
        except UserError as error:
            self.mistakes.append(str(error))
        else:
            self.distributions = {dotted: self.distributions[dotted] for dotted in order}

    def _where(self, dotted: str) -> str:
        return f"{self.path}: {self.table_of[dotted]}: {dotted}"

    def _each(self, fields: Mapping[str, Any], step: Callable[[str, Any], None]) -> None:
        if self.mistakes:
            return
        for dotted, spec in fields.items():
            try:
                step(dotted, spec)
            except UserError as error:
                self.mistakes += str(error).splitlines()
                self.refused.add(dotted)


def _meaning(experiment: Experiment, dotted: str) -> Any:
    """Return the config's value of a field; it is equal for two spellings of the same value."""
    value = own_value(experiment.model_dump(mode="python"), dotted)
    return optimiser_key(value) if dotted == OPTIMISER else value


def _refuse_same(choices: Sequence[tuple[Any, Any]], where: str) -> None:
    """Refuse two choices that the config reads as one value; each is a pair (choice, value)."""
    for position, (written, value) in enumerate(choices):
        for earlier, other in choices[:position]:
            if value == other:
                raise UserError(
                    f"{where}: choices: {earlier!r} and {written!r} are the same; leave one out."
                )
