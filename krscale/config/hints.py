"""Suggestions in errors about a field: the name that was meant, and a value of the right form."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, get_args

from pydantic import BaseModel

from krscale.config.experiment import Experiment

_TYPO_RATIO, _SIMILAR_RATIO = 0.9, 0.75
"""Share of letters in common from which one name is, or may be, a misspelling of the other."""
_OTHER_NAMES = {
    "optim": "optimizer",
    "optimiser": "optimizer",
    "scheduler": "schedule",
    "lr_scheduler": "schedule",
    "lr_schedule": "schedule",
    "ema": "ema_decay",
    "model_ema": "ema_decay",
    "checkpoint": "weights",
    "ckpt": "weights",
    "pretrained": "options",
    "arch": "model",
    "architecture": "model",
    "network": "model",
    "sizes": "capacities",
    "num_trials": "trials_per_size",
    "trials": "trials_per_size",
    "dataset": "source",
    "output_dir": "storage_path",
}
"""Names that other programs have for a field and that are spelt too differently to be matched."""
_MAX_SUGGESTIONS = 3
"""More suggestions than this would not help."""


def field_paths(model: type[BaseModel] = Experiment, prefix: str = "") -> list[str]:
    """Return every dotted path an override or a search space may name."""
    paths: list[str] = []
    for name, field in model.model_fields.items():
        if section := _as_section(field.annotation):
            paths += field_paths(section, f"{prefix}{name}.")
        else:
            paths.append(f"{prefix}{name}")
    return paths


def nearest_fields(dotted: str, allowed: Iterable[str]) -> list[str]:
    """Return the fields that a wrong name most likely stands for; empty when none resembles it.

    A misspelling or a shorter form of a name in the same section comes first (`train.epochs`), then
    the same name in other sections (`search.num_epochs`), then similar names, those of the same
    section first. Only field names are compared, not the names of sections.

    Args:
        dotted: What the user wrote, e.g. `train.optimizer`.
        allowed: Dotted paths.
    """
    section, _, name = dotted.rpartition(".")
    names = list(allowed)
    here = [path for path in names if path.rpartition(".")[0] == section]
    same = [path for path in names if path.rpartition(".")[2] == name]
    if meant := _OTHER_NAMES.get(name.lower()):
        found = [path for path in names if path.rpartition(".")[2] == meant]
        if found := [path for path in found if path in here] or found:
            return found[:_MAX_SUGGESTIONS]
    if found := _most_alike(name, here, _SIMILAR_RATIO if not same else _TYPO_RATIO):
        return found[:1]
    return (same or _most_alike(name, names, _SIMILAR_RATIO))[:_MAX_SUGGESTIONS]


def explain_unknown(path: Sequence[str]) -> str:
    """Return a sentence on a key that does not exist: what was meant, or which keys exist."""
    dotted, section = ".".join(path), _section(path[:-1])
    prefix = "".join(f"{name}." for name in path[:-1])
    here = [f"{prefix}{name}" for name in section.model_fields]
    if found := nearest_fields(dotted, [*here, *field_paths()]):
        return f"Did you mean {' or '.join(map(repr, dict.fromkeys(found)))}?"
    owner = ".".join(path[:-1]) or "An experiment"
    return f"{owner} has: {', '.join(section.model_fields)}."


def explain_item(path: Sequence[str], name: str) -> str:
    """Return a sentence on an unknown key in a table of a list of tables."""
    table = _table_of_list(path)
    names = field_paths(table) if table else []
    if found := nearest_fields(name, names):
        return f"Did you mean {' or '.join(map(repr, found))}?"
    return f"Each table of {'.'.join(path)} has: {', '.join(names)}."


def expected_form(path: Sequence[str], kind: str, value: Any, *, overridden: bool) -> str | None:
    """Return what a value of the wrong form should look like; None to use pydantic's message.

    Args:
        path: The field.
        kind: Pydantic's name of the error.
        value: What was given.
        overridden: Whether the value came from `--set` and not from a file.
    """
    dotted = ".".join(path)
    if _table_of_list(path) and kind in ("tuple_type", "model_type"):
        return f"expected a list of tables, each written [[{dotted}]] with its keys below"
    if kind == "tuple_type":
        return f"expected a list, e.g. {_written(path, _as_list(path, value), overridden)}"
    if kind == "bool_type":
        return "expected true or false"
    if kind == "float_type":
        if isinstance(value, str) and (number := _as_number(value)):
            return f"expected a number as TOML has it, e.g. {_written(path, number, overridden)}"
        return (
            "expected a number, without quotes" if isinstance(value, str) else "expected a number"
        )
    if kind == "string_type":
        if isinstance(value, Mapping | Sequence):
            return "expected text in quotes"
        return f"expected text in quotes, e.g. {str(value)!r}"
    if kind == "dict_type":
        of_optimiser = path[-1] == "optimizer_options"
        table = "{betas = [0.9, 0.99]}" if of_optimiser else "{num_blocks = 2}"
        example = _written(path, table, overridden)
        return f"expected a table of names and values, e.g. {example}"
    if kind == "model_type":
        fields = _section(path).model_fields
        return f"{dotted} is a section, not a value; it has: {', '.join(fields)}"
    return None


def _as_number(text: str) -> str:
    """Return a number in another notation, such as `0,5`, as TOML writes it; else an empty text."""
    written = text.replace(",", ".") if text.count(",") == 1 and "." not in text else text
    try:
        number = float(written)
    except ValueError:
        return ""
    with suppress(tomllib.TOMLDecodeError):
        tomllib.loads(f"x = {text}")
        return ""  # valid TOML: it was given in quotes
    return repr(number) if math.isfinite(number) else ""


def _written(path: Sequence[str], value: str, overridden: bool) -> str:
    return f'--set "{".".join(path)}={value}"' if overridden else f"{path[-1]} = {value}"


def _section(path: Sequence[str]) -> type[BaseModel]:
    """Return the section at a path, all of whose parts exist."""
    found: type[BaseModel] = Experiment
    for name in path:
        found = _as_section(found.model_fields[name].annotation) or found
    return found


def _table_of_list(path: Sequence[str]) -> type[BaseModel] | None:
    """Return the type of the tables in a list of tables; None for any other field."""
    field = _section(path[:-1]).model_fields.get(path[-1]) if path else None
    parts = get_args(field.annotation) if field else ()
    return next((found for part in parts if (found := _as_section(part))), None)


def _as_section(annotation: Any) -> type[BaseModel] | None:
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_section else None


def _as_list(path: Sequence[str], value: Any) -> str:
    """Return the given value as a list, or the field's default where that is not possible."""
    field = _section(path[:-1]).model_fields[path[-1]]
    parts = value.strip("[]() ").split(",") if isinstance(value, str) else []
    items = [item for part in parts if (item := part.strip(" '\""))] or list(field.default)
    of_text = get_args(field.annotation)[:1] == (str,)
    return "[" + ", ".join(repr(item) if of_text else str(item) for item in items) + "]"


def _most_alike(name: str, paths: Iterable[str], least: float) -> list[str]:
    scores = {path: _likeness(name, path.rpartition(".")[2]) for path in paths}
    found = [path for path, score in scores.items() if score >= least]
    return sorted(found, key=lambda path: -scores[path])


def _likeness(name: str, field: str) -> float:
    written, known = _words(name), _words(field)
    is_shorter = written <= known or known <= written  # `epochs`, `batch_size`
    is_initials = name.lower() == "".join(word[0] for word in field.split("_"))  # `lr`
    alike = difflib.SequenceMatcher(None, name.lower(), field).ratio()
    return max(alike, _TYPO_RATIO) if is_shorter or is_initials else alike


def _words(name: str) -> set[str]:
    return {word.removesuffix("s") for word in name.lower().replace("-", "_").split("_")}
