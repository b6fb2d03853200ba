"""The fields of one method in a search space: read, and tried on the experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from krscale.config import Experiment, search_ranges, used_with, with_values
from krscale.errors import UserError
from krscale.search.space.conditions import Condition, check_condition, in_order, read_conditions
from krscale.search.space.distributions import (
    DEFAULT,
    extremes,
    read_distribution,
    with_default_range,
)
from krscale.search.space.fields import check_path, own_value

Check = Callable[[Experiment], None]
"""Refuses, with a `UserError`, an experiment that a trial could not run."""
_RATE = "train.learning_rate"


@dataclass
class MethodReader:
    """Reads the fields of one method; keeps every mistake, so that all are told at once.

    Attributes:
        path: File of the space.
        method: By name.
        experiment: Its own values are the centre.
        num_taps: The teacher's taps.
        check: Tried on the experiment with each field's extreme values.
        distributions: What was read, in the order in which trials are asked.
        conditions: When each of them is searched.
        mistakes: One line each.
    """

    path: Path
    method: str
    experiment: Experiment
    num_taps: int
    check: Check
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)
    conditions: dict[str, tuple[Condition, ...]] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)

    def read(self, fields: Mapping[str, Any]) -> None:
        """Fill `distributions`, in the order in which they are asked, and `conditions`.

        A later step is left out when an earlier one found a mistake, so that one fault is told
        once.
        """
        self._each(fields, self._read_field)
        self._each(fields, self._check_conditions)
        self._sort()
        self._each(fields, self._check_values)

    def _read_field(self, dotted: str, spec: Any) -> None:
        where = self._where(dotted)
        check_path(dotted, self.method, where)
        spec = {"type": DEFAULT} if spec == DEFAULT else spec
        spec = dict(spec) if isinstance(spec, Mapping) else {}
        when = spec.pop("when", None)
        if dotted == _RATE and spec.get("type") == DEFAULT:
            spec |= self._range_of_rate()
        spec = with_default_range(spec, dotted, where)
        self.distributions[dotted] = read_distribution(spec, self.num_taps, where)
        self.conditions[dotted] = (
            () if when is None else read_conditions(when, self.num_taps, where)
        )

    def _range_of_rate(self) -> dict[str, Any]:
        """Return what to search of the learning rate of an optimiser whose range nobody declared.

        It is as wide around the experiment's own rate as SGD's is around its default.
        """
        train = self.experiment.train
        if train.optimizer.lower() == "sgd":
            return {}
        default = type(train).model_fields["learning_rate"].default
        declared = search_ranges()[_RATE].table()
        low, high = (declared[end] / default * train.learning_rate for end in ("low", "high"))
        return {"type": "float", "low": low, "high": high, "log": True}

    def _check_conditions(self, dotted: str, _spec: Any) -> None:
        for condition in self.conditions[dotted]:
            check_condition(condition, self.distributions, self._where(dotted))
        self._check_used(dotted)

    def _check_used(self, dotted: str) -> None:
        """Refuse a field that no trial would use, because of another field's value."""
        section, content = dotted.rpartition(".")[0], self.experiment.model_dump(mode="python")
        needed = used_with().get(dotted, ())
        for one in needed:
            other = f"{section}.{one.field}"
            if other in self.distributions or own_value(content, other) in one.values:
                return
        if needed:
            other, own = f"{section}.{needed[0].field}", content["distill"][needed[0].field]
            raise UserError(
                f"{self._where(dotted)}: it is used with "
                f"{' or '.join(f'{section}.{one}' for one in needed)} alone, and {other} is "
                f"{own!r} in this experiment: set it (--set {other}={needed[0].values[0]}), or "
                f"search {other} as well."
            )

    def _check_values(self, dotted: str, _spec: Any) -> None:
        where, distribution = self._where(dotted), self.distributions[dotted]
        accepted: list[tuple[Any, Any]] = []
        for value in extremes(distribution):
            values = {**self._required(dotted), dotted: value, "distill.method": self.method}
            changed = with_values(self.experiment, values, where)
            try:
                self.check(changed)
            except UserError as error:
                raise UserError(f"{where} = {value!r}: {error}") from None
            accepted.append((value, own_value(changed.model_dump(mode="python"), dotted)))
        if isinstance(distribution, CategoricalDistribution):
            _refuse_same(accepted, where)

    def _required(self, dotted: str) -> dict[str, Any]:
        """Return values of other fields with which this one is searched."""
        values: dict[str, Any] = {}
        for condition in self.conditions[dotted]:
            values |= self._required(condition.path)
            values[condition.path] = condition.example(self.distributions[condition.path])
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
        return f"{self.path}: {dotted}"

    def _each(self, fields: Mapping[str, Any], step: Callable[[str, Any], None]) -> None:
        if self.mistakes:
            return
        for dotted, spec in fields.items():
            try:
                step(dotted, spec)
            except UserError as error:
                self.mistakes += str(error).splitlines()


def _refuse_same(choices: Sequence[tuple[Any, Any]], where: str) -> None:
    """Refuse two choices, each with the value that the config makes of it, that are one."""
    for position, (written, value) in enumerate(choices):
        for earlier, other in choices[:position]:
            if value == other:
                raise UserError(
                    f"{where}: choices: {earlier!r} and {written!r} are the same; leave one out."
                )
