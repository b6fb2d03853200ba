"""Settings by keyword: those of some sections by field name, all of them by dotted path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from krscale.config.hints import field_paths
from krscale.errors import UserError, unknown_name

_SECTIONS = ("", "ladder", "train", "distill", "search")
_NOT_HERE = frozenset(
    {
        "distill.method",  # a search compares methods
        "distill.capacity",
        "ladder.students",
        "search.methods",
        "search.trials_per_size",
    }
)
"""Fields for which `krscale.search` has arguments of its own."""


def put_settings(
    content: dict[str, Any],
    named: Mapping[str, Any],
    settings: Mapping[str, Any],
    fields: Mapping[str, Any],
) -> None:
    """Put settings into the plain content of an experiment.

    Args:
        content: Changed in place.
        named: Fields that the function has arguments for, by dotted path.
        settings: Fields by dotted path.
        fields: Fields by field name.

    Raises:
        UserError: If a name is unknown, belongs to two fields, or is given twice.
    """
    if not isinstance(settings, Mapping) or not all(isinstance(path, str) for path in settings):
        raise UserError(
            f"search: settings: a dictionary of dotted paths is needed, such as "
            f'{{"views.flip": True}} (got {settings!r}).'
        )
    dotted = {_path_of(name): value for name, value in fields.items()}
    for path in settings:
        if not any(f"{path}.".startswith(f"{known}.") for known in _known()):
            raise unknown_name("setting", path, _known(), "search: settings")
    given: dict[str, Any] = {}
    for part in (named, settings, dotted):
        for path, value in part.items():
            if path in given:
                raise UserError(f"search: {path} is given twice.")
            given[path] = value
    for path, value in given.items():
        *sections, name = path.split(".")
        table = content
        for section in sections:
            inner = table.get(section, {})
            if not isinstance(inner, Mapping):
                raise UserError(f"search: {path}: {section!r} is a value, not a table of fields.")
            table[section] = dict(inner)
            table = table[section]
        table[name] = value


def _path_of(name: str) -> str:
    """Return the dotted path of a field of `_SECTIONS`."""
    paths = [path for path in _by_name() if path.rpartition(".")[2] == name]
    if len(paths) > 1:
        raise UserError(
            f"search: {name!r} may be {' or '.join(paths)}; write settings={{{paths[0]!r}: ...}}."
        )
    if not paths:
        allowed = {path.rpartition(".")[2] for path in _by_name()}
        raise unknown_name("setting", name, allowed, "search")
    return paths[0]


def _by_name() -> list[str]:
    return [
        path for path in _known() if path.rpartition(".")[0] in _SECTIONS and path not in _NOT_HERE
    ]


def _known() -> list[str]:
    return sorted(field_paths())
