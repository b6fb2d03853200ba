"""A search space: the fields that a search varies, in Optuna's terms, checked before any run.

[common]                          # for every method
"train.learning_rate" = { type = "float", low = 0.02, high = 0.5, log = true }
"train.weight_decay" = "default"  # the range that the field declares (`krscale.config`)

[kr]                              # for one method, and for all that combine it with others
"distill.granularity" = { type = "int", low = 1, high = "num_taps" }
"distill.mixing" = { type = "categorical", choices = ["arithmetic", "geometric"] }
"distill.sparsity" = { type = "float", low = 0, high = 0.9, when = { "distill.granularity" = [3] } }

["kr+dkd"]                        # for one combination; adds to [kr] or overrides it
"distill.posterior.dkd" = { type = "float", low = 0.1, high = 2.0, log = true }

`distributions.py` reads the distribution of one field, and `conditions.py` its `when`.
`method_reader.py` reads and tries the fields of one method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution

from krscale.config import Experiment, field_paths, fingerprint, method_identity, read_toml
from krscale.errors import UserError, nearest, unknown_name
from krscale.foreign import user_path
from krscale.methods import METHODS, parse_method
from krscale.search.space.conditions import Condition
from krscale.search.space.distributions import contains, suggest
from krscale.search.space.fields import needs_quotes, own_value, unquoted
from krscale.search.space.method_reader import Check, MethodReader

COMMON = "common"
_OF_EXPERIMENTS = ("data", "views", "teacher", "ladder", "search", "tracking")
"""Tables of an experiment that a space must not have."""


@dataclass(frozen=True)
class SearchSpace:
    """The distributions of every method, by dotted path of the config.

    Attributes:
        source: Path of the file.
        by_method: Every field's distribution; a field comes after those its conditions refer to.
        conditions: Conditions by method and field; a field without an entry is always searched.
        tables: Names of the methods for which the file has a table.
    """

    source: str
    by_method: Mapping[str, Mapping[str, BaseDistribution]]
    conditions: Mapping[str, Mapping[str, tuple[Condition, ...]]] = field(default_factory=dict)
    tables: frozenset[str] = frozenset()

    def suggest(self, method: str, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Ask a trial for a value of every field whose conditions hold in it."""
        values: dict[str, Any] = {}
        for path, distribution in self.by_method[method].items():
            if all(condition.holds(values) for condition in self.conditions_of(method, path)):
                values[path] = suggest(trial, path, distribution)
        return values

    def conditions_of(self, method: str, path: str) -> tuple[Condition, ...]:
        """Return the conditions that must hold for a field to be searched."""
        return self.conditions.get(method, {}).get(path, ())

    def is_conditional(self, method: str) -> bool:
        """Return whether some field of a method is searched in some trials only."""
        return any(self.conditions.get(method, {}).values())

    def fingerprint(self) -> str:
        """Return a fingerprint, by which a study with another space is not continued."""
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
    """Return the file of a space, given by its path or by the name of a space shipped with krscale.

    Raises:
        UserError: If neither exists, with the nearest shipped space.
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
    guess = nearest(stem, shipped)
    hint = f" Did you mean {guess!r}?" if guess else ""
    raise UserError(
        f"search.space: unknown space (neither a shipped name nor a file) {name!r}.{hint} "
        f"Allowed: {', '.join(sorted(shipped))}, or the path of a TOML file."
    )


def load_space(
    experiment: Experiment, num_taps: int, check: Check = lambda experiment: None
) -> SearchSpace:
    """Read the experiment's space and check every path, type and range against the config.

    Args:
        experiment: Names the space and the methods; its own values are the centre.
        num_taps: Number of the teacher's taps, for `"num_taps"` as a bound.
        check: Called on the experiment with each field's extreme values in turn, in addition to the
            checks of the config; e.g. whether the networks can be built.

    Raises:
        UserError: With one line for each mistake: file, table, key and what is allowed.
    """
    path = find_space(experiment.search.space)
    tables = read_tables(path)
    mistakes: list[str] = []
    by_method: dict[str, dict[str, BaseDistribution]] = {}
    conditions: dict[str, dict[str, tuple[Condition, ...]]] = {}
    for method in experiment.search.methods:
        identity = method_identity(method)
        wanted = [tables[t] for t in ((COMMON,), identity[:1], identity) if t in tables]
        fields = {dotted: spec for _, table in wanted for dotted, spec in table.items()}
        table_of = {dotted: name for name, table in wanted for dotted in table}
        reader = MethodReader(path, table_of, method, experiment, num_taps, check)
        reader.read(fields)
        by_method[method], conditions[method] = reader.distributions, reader.conditions
        mistakes += [line for line in reader.mistakes if line not in mistakes]
    if mistakes:
        raise UserError("\n".join(mistakes))
    own = {name for name in (*by_method, *METHODS) if method_identity(name) in tables}
    return SearchSpace(str(path), by_method, conditions, frozenset(own))


def defaults_within(
    experiment: Experiment, distributions: Mapping[str, BaseDistribution]
) -> dict[str, Any]:
    """Return the experiment's own values of the searched fields, if the space contains them."""
    content = experiment.model_dump(mode="python")
    own = {dotted: own_value(content, dotted) for dotted in distributions}
    return {
        dotted: value
        for dotted, value in own.items()
        if value is not None and contains(distributions[dotted], value)
    }


def read_tables(path: Path) -> dict[tuple[str, ...], tuple[str, Mapping[str, Any]]]:
    """Return the tables of a space, with their names, by method (`method_identity`).

    Raises:
        UserError: If one is not a table of fields or names no method, or two name the same method.
    """
    content = read_toml(path)
    if sections := [name for name in _OF_EXPERIMENTS if name in content]:
        raise UserError(
            f"{path}: this is an experiment and no search space: it has [{sections[0]}]. `krscale "
            "space check SPACE --experiment EXPERIMENT.toml` checks a space against an experiment."
        )
    names: dict[tuple[str, ...], str] = {}
    for table in content:
        _check_table(table, content[table], path)
        first = names.setdefault(method_identity(table), table)
        if first != table:
            raise UserError(
                f"{path}: the tables {first!r} and {table!r} are of the same method; make them one."
            )
    return {identity: (table, content[table]) for identity, table in names.items()}


def _check_table(table: str, fields: Any, path: Path) -> None:
    outside = table if table in field_paths() else unquoted(table, fields)
    if outside:
        raise UserError(
            f"{path}: {outside}: a field of a space stands in a table, such as [{COMMON}] or [kd]: "
            f'write "{outside}" = ... below one, with quotes.'
        )
    if "+" in table:
        parse_method(table, str(path))
    elif table != COMMON and table not in METHODS:
        raise unknown_name("table", table, [COMMON, *METHODS], str(path))
    if not isinstance(fields, Mapping):
        raise UserError(f"{path}: {table}: expected a table of fields (got {fields!r}).")
    for key, value in fields.items():
        if meant := unquoted(key, value):
            raise needs_quotes(meant, f"{path}: {table}")


def _shipped_folders() -> tuple[Path, ...]:
    package = Path(__file__).parents[2]
    return package / "search_spaces", package.parent / "search_spaces"
