"""The fields that a space may name, and an experiment's own values of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from krscale.config import field_paths, nearest_fields
from krscale.errors import UserError
from krscale.methods import METHODS, method_settings

SEARCHABLE = ("train.", "distill.", "student.")
"""Fields that a trial may change. All others determine data, teacher or store, shared by trials."""
OPEN = "student.options"
"""A table whose keys only the networks themselves define."""
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
"""Fields of these tables that the search itself decides -> how it does."""


def own_value(content: Mapping[str, Any], dotted: str) -> Any:
    """Return an experiment's own value of a field; None if an open table does not contain it."""
    value: Any = content
    for name in dotted.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value


def unquoted(key: str, value: Any) -> str:
    """Return the field that a key without quotes stands for; empty if it stands for none.

    TOML reads `distill.sparsity = "default"` as a table `distill` with a key `sparsity`.
    """
    known = field_paths()
    if not value or not isinstance(value, Mapping):
        return ""
    if not any(path.startswith(f"{key}.") for path in known):
        return ""
    dotted = key
    while isinstance(value, Mapping) and value:
        if (dotted in known and dotted != OPEN) or dotted.startswith(f"{OPEN}."):
            break  # the rest is the range of the field
        name, value = next(iter(value.items()))
        dotted = f"{dotted}.{name}"
    return dotted


def needs_quotes(dotted: str, where: str) -> UserError:
    """Return the error for a field without quotes around its name."""
    return UserError(
        f'{where}: write "{dotted}" = ... with quotes: without them, TOML reads a dot as a table '
        f"in a table."
    )


def check_path(dotted: str, method: str, where: str) -> None:
    """Refuse a field that no search may vary, or no search of this method.

    Args:
        dotted: Path of the field.
        method: Name of the method.
        where: File and field, for errors.

    Raises:
        UserError: With the reason, and the nearest field or the existing fields.
    """
    allowed = [
        name for name in field_paths() if name.startswith(SEARCHABLE) and name not in DECIDED
    ]
    if dotted in DECIDED:
        raise UserError(f"{where}: not searched: {DECIDED[dotted]}.")
    section, _, name = dotted.partition(".")
    if dotted.startswith(f"{OPEN}."):
        return
    if dotted not in allowed:
        found = nearest_fields(dotted, allowed)
        hint = f" Did you mean {' or '.join(map(repr, found))}?" if found else ""
        raise UserError(
            f"{where}: no such field to search.{hint} A space may vary fields of train, distill "
            f"and student; the others are shared by all trials."
        )
    if section == "distill" and name not in method_settings(method):
        takes = ", ".join(method_settings(method)) or "none at all"
        having = [other for other in METHODS if name in method_settings(other)]
        hint = f" These methods have it: {', '.join(having)}." if having else ""
        raise UserError(f"{where}: method {method!r} has no such setting. It takes: {takes}.{hint}")
