"""Notes for the user on a valid space: methods that it varies little or not at all."""

from __future__ import annotations

from collections.abc import Mapping

from krscale.methods import method_settings
from krscale.search.space.space import SearchSpace


def notes_on_space(space: SearchSpace, planned: Mapping[str, int]) -> list[str]:
    """Return a line for every method that is searched less than others, or not at all.

    Args:
        space: The space.
        planned: Number of trials of a study, by method.
    """
    return [note for method in space.by_method if (note := _note(space, method, planned[method]))]


def _note(space: SearchSpace, method: str, num_trials: int) -> str:
    fields = space.by_method[method]
    varied = [dotted for dotted, distribution in fields.items() if not distribution.single()]
    table, base = _header(method), method.partition("+")[0]
    lacking = "" if method in space.tables else f"{space.source} has no table {table}"
    if not varied:
        if num_trials == 1:  # e.g. the space `fixed`
            return ""
        why = lacking or f"{space.source} varies none of its fields"
        return (
            f"{method}: nothing is searched, so that all {num_trials} trials of a size are the "
            f"same; {why}"
        )
    if not lacking or not method_settings(method):  # plain training has none to vary
        return ""
    if method != base and base in space.tables:
        return f"{method}: only what [{base}] varies is searched; {lacking}"
    verb = "is" if len(varied) == 1 else "are"
    return f"{method}: only {', '.join(varied)} {verb} searched; {lacking}"


def _header(method: str) -> str:
    """Return the header of a table in TOML."""
    return f'["{method}"]' if "+" in method else f"[{method}]"
