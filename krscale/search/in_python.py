"""Error texts for callers from Python: they name arguments instead of command-line options."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import contextmanager

from krscale.errors import UserError, reworded

_FLAGS = {"--new-data": "new_data=True", "--new-space": "new_space=True"}
_NUMBERS = {
    "--max-params": "max_parameters",
    "--max-flops": "max_flops",
    "--max-latency-ms": "max_latency_ms",
    "--min-accuracy": "min_accuracy",
}
_OWN_NAMES = {
    "name": "name",
    "storage_path": "storage_path",
    "search.trials_per_size": "num_trials",
}
"""Arguments that stand for a setting, by the path of that setting."""
_OF_COMMANDS = " Run with --dry-run to see every key."
_COMMAND = re.compile(r"(`[^`]*`)")
_SET = r"--set ([\w.]+)=(\[[^\]]*\]|\.\.\.|[^\s,;)\]]*[^\s,;)\].])"
_SETS = re.compile(rf"{_SET}(?: {_SET})*")
_OPTION = re.compile(rf"({'|'.join(_FLAGS)})\b|({'|'.join(_NUMBERS)}) ([\d.]+\d|\d)")


@contextmanager
def errors_in_python() -> Iterator[None]:
    """Make each `UserError` of this block name arguments instead of command-line options."""
    try:
        yield
    except UserError as error:
        if (text := in_python(str(error))) == str(error):
            raise
        raise reworded(error, text) from error


def in_python(text: str) -> str:
    """Replace the options that a message names by the arguments that a Python caller writes.

    Whole commands, which are between backticks, stay unchanged.

    Example:
        >>> in_python("Choose another name (--set name=...), or go on with --new-data.")
        'Choose another name (name=...), or go on with new_data=True.'
        >>> in_python("set it (--set distill.where_weight=1), or leave it out.")
        "set it (settings={'distill.where_weight': 1}), or leave it out."
        >>> in_python("It is picked with --max-params 13160 --min-accuracy 0.9000.")
        'It is picked with max_parameters=13160, min_accuracy=0.9000.'
    """
    parts = _COMMAND.split(text)
    return "".join(part if number % 2 else _translated(part) for number, part in enumerate(parts))


def _translated(text: str) -> str:
    text = _SETS.sub(_settings, text.replace(_OF_COMMANDS, ""))
    text = _OPTION.sub(_argument, text)
    names = "|".join(_NUMBERS.values())
    return re.sub(rf"({names})=([\d.]*\d) (?=(?:{names})=)", r"\1=\2, ", text)


def _argument(found: re.Match[str]) -> str:
    flag, name, number = found.groups()
    return _FLAGS[flag] if flag else f"{_NUMBERS[name]}={number}"


def _settings(found: re.Match[str]) -> str:
    """Return the arguments for one `--set`, or for several in a row."""
    given = dict(re.findall(_SET, found[0]))
    own = [f"{_OWN_NAMES[path]}={_value(given.pop(path))}" for path in _OWN_NAMES if path in given]
    table = ", ".join(f"{path!r}: {_value(text)}" for path, text in given.items())
    return ", ".join([*own, *([f"settings={{{table}}}"] if given else [])])


def _value(text: str) -> str:
    """Convert a value from the syntax of `--set` to Python syntax."""
    if text in ("true", "false"):
        return text.title()
    try:
        return repr(ast.literal_eval(text)) if text != "..." else text
    except (SyntaxError, ValueError):
        return repr(text)
