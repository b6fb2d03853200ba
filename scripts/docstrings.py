"""Signatures and docstrings as Markdown, for scripts/write_reference.py."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

SECTION = re.compile(r"(Args|Returns|Yields|Raises|Attributes|Examples?):$")
ITEM = re.compile(r"(?P<name>\*{0,2}[\w.]+): (?P<text>.*)")


def docstring(value: Any) -> list[str]:
    """Return a docstring as Markdown: sections as lists, examples as code."""
    lines, section = [], ""
    for line in (inspect.getdoc(value) or "").splitlines():
        if found := SECTION.match(line):
            section = found[1]
            lines += [f"**{section}**", ""]
        elif not line.strip() or not line.startswith(" "):
            section = "" if line.strip() else section
            lines.append(line)
        elif section.startswith("Example") or not section:
            lines.append(line if section == "" else f"    {line.strip(' ')}")
        elif (item := ITEM.match(line.strip())) and line[4:5] != " ":
            lines.append(f"- `{item['name']}`: {item['text']}")
        else:
            lines.append(f"{'  ' if lines[-1].startswith(('-', '  ')) else ''}{line.strip()}")
    return lines


def signature(title: str, function: Any) -> list[str]:
    """Return a function's signature as Markdown, one parameter per line, with default values."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    parts, starred = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            parts, starred = [*parts, "*"], True
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        text = f"{stars.get(parameter.kind, '')}{parameter.name}: {parameter.annotation}"
        if parameter.default is not parameter.empty:
            default = "..." if callable(parameter.default) else repr(parameter.default)
            text += f" = {default}"
        parts.append(text)
    inside = "".join(f"\n    {part}," for part in parts)
    returns = inspect.signature(function).return_annotation
    return ["```py", f"{title}({inside}\n) -> {returns}", "```", ""]


def result_class(function: Any) -> type | None:
    """Return the class of a function's result, if it is defined in the function's package."""
    name = inspect.signature(function).return_annotation
    found = vars(sys.modules[function.__module__]).get(str(name))
    package = function.__module__.rpartition(".")[0]
    return found if inspect.isclass(found) and found.__module__.startswith(package) else None


def public_methods(kind: type) -> list[str]:
    """Return the names of documented public methods and properties that a class itself defines."""
    return [
        name
        for name, value in vars(kind).items()
        if not name.startswith("_")
        and inspect.getdoc(value)
        and (callable(value) or isinstance(value, (classmethod, property)))
        and not name.endswith("extra_state")
        and name != "extra_repr"
    ]
