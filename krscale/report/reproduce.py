"""The command that runs an experiment again, with the settings that differ from the defaults."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from krscale.config import Experiment
from krscale.models.given import is_given

_ELSEWHERE = {"storage_path", "tracking", "cluster"}
"""Where a run is stored, tracked and computed; these do not affect its result."""


def command_of(experiment: Experiment) -> str:
    """Return `python -m krscale.tune` with a `--set` for each field that is not the default."""
    parts = ["python -m krscale.tune"]
    parts += [f"--set {shlex.quote(setting)}" for setting in settings_of(experiment)]
    return " \\\n    ".join(parts)


def why_no_command(experiment: Experiment) -> str:
    """Return why no command runs an experiment again, as a sentence; empty if one does."""
    students = experiment.ladder.students or (experiment.student,)
    models = [config.model for config in (experiment.teacher, *students)]
    objects = list(dict.fromkeys(model for model in models if is_given(model)))
    if not objects:
        return ""
    return (
        f"krscale.search was given networks as Python objects ({', '.join(objects)}), which no "
        "command can name. The same call runs the search again."
    )


def settings_of(experiment: Experiment) -> list[str]:
    """Return `key.path=value` for each field that is not the default, as `--set` takes it."""
    given = experiment.model_dump(mode="json", exclude=_ELSEWHERE)
    default = Experiment().model_dump(mode="json", exclude=_ELSEWHERE)
    return list(_changes(given, default, ""))


def _changes(given: Mapping[str, Any], default: Mapping[str, Any], prefix: str) -> list[str]:
    found = []
    for name, value in given.items():
        path = f"{prefix}{name}"
        if value == default[name]:
            continue
        if isinstance(value, Mapping) and name not in _FREE:
            found += _changes(value, default[name], f"{path}.")
        else:
            found.append(f"{path}={_toml(value)}")
    return found


_FREE = {"options"}
"""Fields that are free-form tables: replaced as a whole, not key by key."""


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = (f"{_toml(key)} = {_toml(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # JSON's strings, numbers and booleans are valid TOML, except for escaped surrogate pairs.
    return "".join(map(_escaped, json.dumps(value, ensure_ascii=False)))


def _escaped(char: str) -> str:
    """Escape what TOML forbids or a page does not show: DEL, the joiners inside an emoji."""
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
