"""A search space: which fields a search varies, in Optuna's words, checked before anything runs.

[common]                          # for every method
"train.learning_rate" = { type = "float", low = 0.02, high = 0.5, log = true }
"train.weight_decay" = "default"  # the range that the field declares (`krscale.config`)

[kr]                              # for one method, and for all that combine it with others
"distill.granularity" = { type = "int", low = 1, high = "num_taps" }
"distill.mixing" = { type = "categorical", choices = ["arithmetic", "geometric"] }
"distill.sparsity" = { type = "float", low = 0, high = 0.9, when = { "distill.granularity" = [3] } }

["kr+dkd"]                        # for one combination; adds to [kr] or overrides it
"distill.posterior.dkd" = { type = "float", low = 0.1, high = 2.0, log = true }

`distributions.py` has the words of one field, `conditions.py` those of `when`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from krscale.config import (
    Experiment,
    field_paths,
    fingerprint,
    method_identity,
    nearest_fields,
    read_toml,
    search_ranges,
    used_with,
    with_values,
)
from krscale.errors import UserError, unknown_name
from krscale.foreign import user_path
from krscale.methods import METHODS, method_settings, parse_method
from krscale.search.space.conditions import Condition, check_condition, in_order, read_conditions
from krscale.search.space.distributions import (
    DEFAULT,
    contains,
    extremes,
    read_distribution,
    suggest,
    with_default_range,
)

COMMON = "common"
SEARCHABLE = ("train.", "distill.", "student.")
"""Fields a trial may change: all others decide data, teacher or store, which trials share."""
DECIDED: Mapping[str, str] = {
    "train.num_epochs": "early stopping compares trials of the same length",
    "train.num_workers": "the places of the cluster are cut for it, once for all trials",
    "train.max_workers": "the places of the cluster are cut for it, once for all trials",
    "train.device": "it follows from search.gpus_per_trial",
    "train.seed": "trials share it, and finals have fresh ones",
    "distill.method": "search.methods names them",
    "distill.capacity": "ladder.capacities names them",
    "distill.probe_grid": "all trials share the store of what the probes read",
    "student.taps": "a list is no choice; a search has one",
}
"""Fields of these tables that the search itself decides, and how."""

Check = Callable[[Experiment], None]
"""Refuses, with a `UserError`, an experiment that a trial could not run."""


@dataclass(frozen=True)
class SearchSpace:
    """The distributions of every method, by dotted path of the config.

    Attributes:
        source: The file.
        by_method: Every field's distribution; a field comes after those its conditions speak of.
        conditions: By method and field; a field without an entry is always searched.
    """

    source: str
    by_method: Mapping[str, Mapping[str, BaseDistribution]]
    conditions: Mapping[str, Mapping[str, tuple[Condition, ...]]] = field(default_factory=dict)

    def suggest(self, method: str, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Ask a trial for a value of every field that is searched in it, conditions followed."""
        values: dict[str, Any] = {}
        for path, distribution in self.by_method[method].items():
            if all(condition.holds(values) for condition in self.conditions_of(method, path)):
                values[path] = suggest(trial, path, distribution)
        return values

    def conditions_of(self, method: str, path: str) -> tuple[Condition, ...]:
        """Return what must hold for a field to be searched."""
        return self.conditions.get(method, {}).get(path, ())

    def is_conditional(self, method: str) -> bool:
        """Return whether some field of a method is searched in some trials only."""
        return any(self.conditions.get(method, {}).values())

    def fingerprint(self) -> str:
        """Identify the space, to refuse continuing a study whose space has changed."""
        return fingerprint(self.describe())

    def describe(self) -> dict[str, dict[str, str]]:
        """Return every distribution, with its conditions, as text, by method and path."""
        return {
            method: {path: self._describe(method, path) for path in sorted(fields)}
            for method, fields in sorted(self.by_method.items())
        }

    def _describe(self, method: str, path: str) -> str:
        conditions = " and ".join(map(str, self.conditions_of(method, path)))
        return f"{self.by_method[method][path]}" + (f" when {conditions}" if conditions else "")


def find_space(name: str) -> Path:
    """Return the file of a space: a path, or the name of one that ships with krscale.

    Raises:
        UserError: If neither exists; names the nearest shipped space.
    """
    path = user_path(name, "search.space")
    if name.endswith(".toml") and path.exists():
        return path
    folder = next((f for f in _shipped_folders() if f.is_dir()), None)
    shipped = {path.stem: path for path in folder.glob("*.toml")} if folder else {}
    stem = Path(name).stem
    if stem in shipped and name in (stem, f"search_spaces/{stem}.toml"):
        return shipped[stem]
    if path.is_file():
        raise UserError(f"search.space: {path}: the name of a file with a space ends in .toml.")
    raise unknown_name("space (neither a shipped name nor a file)", name, shipped, "search.space")


def load_space(
    experiment: Experiment, num_taps: int, check: Check = lambda experiment: None
) -> SearchSpace:
    """Read the experiment's space and check every path, type and range against the config.

    Args:
        experiment: Names the space and the methods; its own values are the centre.
        num_taps: The teacher's taps, for `"num_taps"` as a bound.
        check: Tried on the experiment with each field's extreme values in turn, e.g. whether its
            networks can be built; beyond what the config itself refuses.

    Raises:
        UserError: One line for every mistake: file, table, key and what is allowed.
    """
    path = find_space(experiment.search.space)
    content = read_toml(path)
    tables = _tables_by_method(content, path)
    mistakes: list[str] = []
    by_method: dict[str, dict[str, BaseDistribution]] = {}
    conditions: dict[str, dict[str, tuple[Condition, ...]]] = {}
    for method in experiment.search.methods:
        identity = method_identity(method)
        reader = _MethodReader(path, method, experiment, num_taps, check)
        wanted = ((COMMON,), identity[:1], identity)
        reader.read({dotted: spec for t in wanted for dotted, spec in tables.get(t, {}).items()})
        by_method[method], conditions[method] = reader.distributions, reader.conditions
        mistakes += [line for line in reader.mistakes if line not in mistakes]
    if mistakes:
        raise UserError("\n".join(mistakes))
    return SearchSpace(str(path), by_method, conditions)


def defaults_within(
    experiment: Experiment, distributions: Mapping[str, BaseDistribution]
) -> dict[str, Any]:
    """Return the experiment's own values of the searched fields, where the space contains them."""
    content = experiment.model_dump(mode="python")
    own = {dotted: own_value(content, dotted) for dotted in distributions}
    return {
        dotted: value
        for dotted, value in own.items()
        if value is not None and contains(distributions[dotted], value)
    }


def own_value(content: Mapping[str, Any], dotted: str) -> Any:
    """Return an experiment's own value of a field, None where an open table does not have it."""
    value: Any = content
    for name in dotted.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value


_RATE = "train.learning_rate"


class _MethodReader:
    """Reads the fields of one method; keeps every mistake, so that all are told at once."""

    def __init__(
        self, path: Path, method: str, experiment: Experiment, num_taps: int, check: Check
    ) -> None:
        self.path, self.method = path, method
        self.experiment, self.num_taps, self.check = experiment, num_taps, check
        self.distributions: dict[str, BaseDistribution] = {}
        self.conditions: dict[str, tuple[Condition, ...]] = {}
        self.mistakes: list[str] = []

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
        _check_path(dotted, self.method, where)
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


def _tables_by_method(
    content: Mapping[str, Any], path: Path
) -> dict[tuple[str, ...], Mapping[str, Any]]:
    """Return the tables of a space by what their names stand for (`method_identity`)."""
    names: dict[tuple[str, ...], str] = {}
    for table in content:
        _check_table(table, path)
        first = names.setdefault(method_identity(table), table)
        if first != table:
            raise UserError(
                f"{path}: the tables {first!r} and {table!r} are of the same method; make them one."
            )
    return {identity: content[table] for identity, table in names.items()}


def _refuse_same(choices: Sequence[tuple[Any, Any]], where: str) -> None:
    """Refuse two choices, each with the value that the config makes of it, that are one."""
    for position, (written, value) in enumerate(choices):
        for earlier, other in choices[:position]:
            if value == other:
                raise UserError(
                    f"{where}: choices: {earlier!r} and {written!r} are the same; leave one out."
                )


def _check_table(table: str, path: Path) -> None:
    if "+" in table:
        parse_method(table, str(path))
    elif table != COMMON and table not in METHODS:
        raise unknown_name("table", table, [COMMON, *METHODS], str(path))


def _check_path(dotted: str, method: str, where: str) -> None:
    allowed = [
        name for name in field_paths() if name.startswith(SEARCHABLE) and name not in DECIDED
    ]
    if dotted in DECIDED:
        raise UserError(f"{where}: not searched: {DECIDED[dotted]}.")
    section, _, name = dotted.partition(".")
    if dotted.startswith("student.options."):
        return  # the networks themselves know these
    if dotted not in allowed:
        found = nearest_fields(dotted, allowed)
        hint = f" Did you mean {' or '.join(map(repr, found))}?" if found else ""
        raise UserError(
            f"{where}: no such field to search.{hint} A space may vary fields of train, distill "
            f"and student; the others are shared by all trials."
        )
    if section == "distill" and name not in method_settings(method):
        raise UserError(
            f"{where}: method {method!r} has no such setting. It takes: "
            f"{', '.join(method_settings(method))}."
        )


def _shipped_folders() -> tuple[Path, ...]:
    package = Path(__file__).parents[2]
    return package / "search_spaces", package.parent / "search_spaces"
