"""A search space: which fields a search varies, in Optuna's words, checked before anything runs.

[common]                          # for every method
"train.learning_rate" = { type = "float", low = 0.02, high = 0.5, log = true }

[kr]                              # for one method, and for all that combine it with others
"distill.granularity" = { type = "int", low = 1, high = "num_taps" }
"distill.mixing" = { type = "categorical", choices = ["arithmetic", "geometric"] }

["kr+dkd"]                        # for one combination; adds to [kr] or overrides it
"distill.posterior.dkd" = { type = "float", low = 0.1, high = 2.0, log = true }
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from krscale.config import Experiment, field_paths, fingerprint, read_toml, with_values
from krscale.errors import UserError, nearest, unknown_name
from krscale.methods import METHODS, method_settings, parse_method

COMMON = "common"
SEARCHABLE = ("train.", "distill.", "student.")
"""Fields a trial may change: all others decide data, teacher or store, which trials share."""

_TYPES: Mapping[str, tuple[type[BaseDistribution], frozenset[str]]] = {
    "float": (FloatDistribution, frozenset({"low", "high", "log", "step"})),
    "int": (IntDistribution, frozenset({"low", "high", "log", "step"})),
    "categorical": (CategoricalDistribution, frozenset({"choices"})),
}


@dataclass(frozen=True)
class SearchSpace:
    """The distributions of every method, by dotted path of the config."""

    source: str
    by_method: Mapping[str, Mapping[str, BaseDistribution]]

    def fingerprint(self) -> str:
        """Identify the space, to refuse continuing a study whose space has changed."""
        return fingerprint(self.describe())

    def describe(self) -> dict[str, dict[str, str]]:
        """Return every distribution as text, by method and path."""
        return {
            method: {path: str(distribution) for path, distribution in sorted(fields.items())}
            for method, fields in sorted(self.by_method.items())
        }


def find_space(name: str) -> Path:
    """Return the file of a space: a path, or the name of one that ships with krscale.

    Raises:
        UserError: If neither exists; names the nearest shipped space.
    """
    if name.endswith(".toml"):
        path = Path(name).expanduser()
        if path.is_file():
            return path
    folder = next((f for f in _shipped_folders() if f.is_dir()), None)
    shipped = {path.stem: path for path in folder.glob("*.toml")} if folder else {}
    stem = Path(name).stem
    if stem in shipped and name in (stem, f"search_spaces/{stem}.toml"):
        return shipped[stem]
    raise unknown_name("space (neither a shipped name nor a file)", name, shipped, "search.space")


def load_space(experiment: Experiment, num_taps: int) -> SearchSpace:
    """Read the experiment's space and check every path, type and range against the config.

    Args:
        experiment: Names the space and the methods; its own values are the centre.
        num_taps: The teacher's taps, for `high = "num_taps"`.

    Raises:
        UserError: Naming file, table, key and what is allowed.
    """
    path = find_space(experiment.search.space)
    content = read_toml(path)
    for table in content:
        _check_table(table, path)
    by_method: dict[str, dict[str, BaseDistribution]] = {}
    for method in experiment.search.methods:
        tables = (COMMON, method.partition("+")[0], method)
        fields = {dotted: spec for t in tables for dotted, spec in content.get(t, {}).items()}
        by_method[method] = {
            dotted: _distribution(experiment, method, dotted, spec, num_taps, path)
            for dotted, spec in fields.items()
        }
    return SearchSpace(str(path), by_method)


def defaults_within(
    experiment: Experiment, distributions: Mapping[str, BaseDistribution]
) -> dict[str, Any]:
    """Return the experiment's own values of the searched fields, where the space contains them."""
    content = experiment.model_dump(mode="python")
    found: dict[str, Any] = {}
    for dotted, distribution in distributions.items():
        value: Any = content
        for name in dotted.split("."):
            value = value[name]
        if _contains(distribution, value):
            found[dotted] = value
    return found


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (ValueError, TypeError):
        return False


def _distribution(
    experiment: Experiment,
    method: str,
    dotted: str,
    spec: Any,
    num_taps: int,
    path: Path,
) -> BaseDistribution:
    where = f"{path}: {dotted}"
    _check_path(dotted, method, where)
    if not isinstance(spec, dict) or "type" not in spec:
        raise UserError(
            f'{where}: expected a table such as {{ type = "float", low = 0, high = 1 }}.'
        )
    if spec["type"] not in _TYPES:
        raise unknown_name("type", str(spec["type"]), _TYPES, where)
    kind, allowed = _TYPES[spec["type"]]
    arguments = {key: value for key, value in spec.items() if key != "type"}
    for key in arguments:
        if key not in allowed:
            raise unknown_name("key", key, allowed, where)
    if arguments.get("high") == "num_taps":
        arguments["high"] = num_taps
    try:
        distribution = kind(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error} (got {spec}).") from None
    for value in _ends(distribution):
        with_values(experiment, {dotted: value}, where)
    return distribution


def _check_table(table: str, path: Path) -> None:
    if "+" in table:
        parse_method(table, str(path))
    elif table != COMMON and table not in METHODS:
        raise unknown_name("table", table, [COMMON, *METHODS], str(path))


def _check_path(dotted: str, method: str, where: str) -> None:
    allowed = [name for name in field_paths() if name.startswith(SEARCHABLE)]
    if dotted.startswith("student.options."):
        return
    if dotted not in allowed:
        guess = nearest(dotted, allowed)
        hint = f" Did you mean {guess!r}?" if guess else ""
        raise UserError(
            f"{where}: no such field to search.{hint} A space may vary fields of train, distill "
            f"and student; the others are shared by all trials."
        )
    section, _, field = dotted.partition(".")
    if section == "distill" and field not in method_settings(method):
        raise UserError(
            f"{where}: method {method!r} has no such setting. It takes: "
            f"{', '.join(method_settings(method))}."
        )


def _ends(distribution: BaseDistribution) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)  # noqa: S101
    return distribution.low, distribution.high


def _shipped_folders() -> tuple[Path, ...]:
    package = Path(__file__).parents[1]
    return package / "search_spaces", package.parent / "search_spaces"


optuna.logging.set_verbosity(optuna.logging.WARNING)
