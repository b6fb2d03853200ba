"""Reading an experiment from TOML and overrides; every mistake in one line of its own."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from krscale.config.experiment import Experiment
from krscale.config.hints import expected_form, explain_unknown, field_paths
from krscale.errors import UserError, nearest


def load(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment from TOML and apply `key.path=value` overrides.

    Args:
        path: A TOML file, or None for the embedded default (the digits experiment).
        overrides: Assignments such as `"train.num_epochs=20"`; values are TOML, and a bare word
            is a string.

    Raises:
        UserError: If the file cannot be read, or any key or value is refused.
    """
    content: dict[str, Any] = read_toml(Path(path)) if path else {}
    where = str(path) if path else "defaults"
    for assignment in overrides:
        _assign(content, assignment)
    sources = {a.partition("=")[0].strip() for a in overrides}
    return validate(content, where, sources)


def validate(content: Mapping[str, Any], where: str, overridden: Iterable[str] = ()) -> Experiment:
    """Build the experiment from plain content, or raise one `UserError` naming every mistake."""
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        set_keys = set(overridden)
        by_field: dict[tuple[str, ...], list[Any]] = {}
        for found in error.errors(include_url=False):
            by_field.setdefault(_field_of(found["loc"]), []).append(found)
        lines = [_explain(path, found, where, set_keys) for path, found in by_field.items()]
        raise UserError("\n".join(lines)) from None


def with_values(experiment: Experiment, values: Mapping[str, Any], where: str) -> Experiment:
    """Return a copy in which each dotted path of `values` has the given value, validated."""
    content = experiment.model_dump(mode="python")
    for dotted, value in values.items():
        _put(content, dotted, value, where)
    return validate(content, where)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file, or raise a `UserError` that says why it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        guess = nearest(path.name, siblings)
        hint = f" Did you mean {path.parent / guess}?" if guess else ""
        raise UserError(f"{path}: no such file.{hint}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: not a readable TOML file: {error}") from None


def _assign(content: dict[str, Any], assignment: str) -> None:
    dotted, separator, text = assignment.partition("=")
    if not separator or not dotted.strip():
        raise UserError(f"--set {assignment}: expected key.path=value, e.g. train.num_epochs=20.")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    _put(content, dotted.strip(), value, f"--set {assignment}")


def _put(content: dict[str, Any], dotted: str, value: Any, where: str) -> None:
    *parents, leaf = dotted.split(".")
    table = content
    for name in parents:
        child = table.setdefault(name, {})
        if not isinstance(child, dict):
            raise UserError(f"{where}: {name!r} is a value, not a table of fields.")
        table = child
    table[leaf] = value


def _field_of(location: Sequence[int | str]) -> tuple[str, ...]:
    """Drop what pydantic adds below a field: the branch of a union, the index in a list."""
    path = tuple(str(part) for part in location)
    known = {tuple(name.split(".")) for name in field_paths()}
    return next((path[:end] for end in range(1, len(path)) if path[:end] in known), path)


def _explain(path: tuple[str, ...], found: list[Any], where: str, overridden: set[str]) -> str:
    """One line for one field: the place, what is allowed, what was given, the nearest name."""
    dotted = ".".join(path)
    flag = next((key for key in sorted(overridden) if _one_within(key, dotted)), None)
    place = f"--set {flag}" if flag else f"{where}: {dotted}"
    if found[0]["type"] == "extra_forbidden":
        hint = explain_unknown(path)
        return f"{place}: unknown key {dotted!r}. {hint} Run with --dry-run to see every key."
    allowed = ", or ".join(_message(path, error, overridden=flag is not None) for error in found)
    return f"{place}: {allowed} (got {found[0]['input']!r})."


def _one_within(first: str, second: str) -> bool:
    """Whether two dotted names are the same, or one is a part of the other."""
    return f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}.")


def _message(path: tuple[str, ...], error: Any, *, overridden: bool) -> str:
    form = expected_form(path, error["type"], error["input"], overridden=overridden)
    message: str = form or error["msg"].removeprefix("Value error, ")
    return message if form else message[0].lower() + message[1:]
