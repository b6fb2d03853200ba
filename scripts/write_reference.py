"""Write the pages docs/reference-*.md from the settings, the commands and the public functions.

python scripts/write_reference.py            # writes
python scripts/write_reference.py --check    # exit code 1 if a page differs
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.pop("KRSCALE_STORAGE_PATH", None)  # it would change a default on the page

from docstrings import docstring, public_methods, result_class, signature  # noqa: E402
from pydantic import BaseModel  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402

import krscale  # noqa: E402
from krscale.cli.app import COMMANDS, build_parser  # noqa: E402
from krscale.config import Experiment, search_ranges  # noqa: E402

WRITTEN = "<!-- Written by scripts/write_reference.py; do not edit. -->"
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
KINDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "`true` or `false`",
    "object": "table",
}


def settings_page() -> str:
    """Return the page of all settings: a table for each section of an experiment."""
    lines = [
        "# Settings",
        "",
        WRITTEN,
        "",
        "Every field of an experiment file, and of `--set SECTION.FIELD=VALUE`. An unknown name",
        "or a value that is not allowed is refused, with the nearest name that exists. *Searched*",
        'is the range that `"default"` stands for in a [space](search.md#what-is-varied).',
        "`krscale tune EXPERIMENT.toml --dry-run` prints all fields as an experiment has them.",
    ]
    for name, model, introduction in _sections(Experiment, ""):
        lines += ["", f"## `{name}`" if name else "## The experiment", "", introduction, ""]
        lines += _table(_rows(model, name))
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """Return the page of all commands, each with its arguments."""
    lines = [
        "# Commands",
        "",
        WRITTEN,
        "",
        "`krscale COMMAND`; each also runs as `python -m krscale.COMMAND`. Exit code 0 is success,",
        "1 what a command was to find (`data check`, `store check`, `teacher check`, `verify`) or",
        "could not finish (`clean`, `sync`), 2 a mistake in what was given (a line on stderr says",
        "which), 130, 143 or 129 an interruption, after which the same command continues; 141 says",
        "that whoever read the output had seen enough.",
        "",
        "| command | what it does |",
        "|---|---|",
        *(f"| [`{name}`](#{name}) | {purpose} |" for name, purpose in COMMANDS.items()),
    ]
    for name, parser in _subcommands(build_parser()).items():
        lines += ["", f"## {name}", "", parser.description or "", *_arguments(parser)]
        for inner, below in _subcommands(parser).items():
            text = below.description or _purpose(parser, inner)
            lines += ["", f"### {name} {inner}", "", text, *_arguments(below)]
    return "\n".join(lines) + "\n"


def functions_page() -> str:
    """Return the page of what `import krscale` offers, from signatures and docstrings."""
    lines = [
        "# Functions",
        "",
        WRITTEN,
        "",
        "What `import krscale` offers; [the tutorial](own-loop.md) shows it in use. Shapes: `B`",
        "samples, `K` classes, `D` taps.",
    ]
    for name in krscale.__all__:
        value = inspect.unwrap(getattr(krscale, name))  # `krscale.search` is a package, too
        title = f"krscale.{name}"
        lines += ["", f"## {title}", ""]
        if inspect.ismodule(value):
            lines += docstring(value)
            for member in value.__all__:
                lines += _function(f"{title}.{member}", getattr(value, member))
        elif inspect.isclass(value):
            lines += docstring(value)
            for member in public_methods(value):
                lines += _function(f"{title}.{member}", getattr(value, member))
        else:
            lines += [*signature(title, value), *docstring(value)]
            if (result := result_class(value)) is not None:
                lines += ["", f"### {result.__name__}", "", *docstring(result)]
                for member in public_methods(result):
                    lines += _function(f"{result.__name__}.{member}", getattr(result, member))
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "reference-settings.md": settings_page,
    "reference-commands.md": commands_page,
    "reference-functions.md": functions_page,
}


def _sections(model: type[BaseModel], name: str) -> Iterator[tuple[str, type[BaseModel], str]]:
    """Yield every table of an experiment: its name in TOML, its class and its introduction."""
    yield (f"[{name}]" if name else "", model, _first_paragraph(model))
    for key, field in model.model_fields.items():
        dotted = f"{name}.{key}" if name else key
        if (table := _table_of(field)) is not None:
            yield from _sections(table, dotted)
        elif (item := _table_of_list(field)) is not None:
            yield f"[[{dotted}]]", item, _first_paragraph(item)
            for below, inner in item.model_fields.items():
                if (table := _table_of(inner)) is not None:
                    yield f"[{dotted}.{below}]", table, _first_paragraph(table)


def _table(rows: list[dict[str, str]]) -> list[str]:
    """Return a table without its empty columns."""
    columns = [column for column in rows[0] if any(row[column] for row in rows)]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = (row[column].replace("|", "\\|") for column in columns)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _rows(model: type[BaseModel], section: str) -> list[dict[str, str]]:
    schema = model.model_json_schema()
    prefix = f"{section.strip('[]')}." if section else ""
    searched = search_ranges()
    rows = []
    for key, field in model.model_fields.items():
        if _table_of(field) is not None:
            continue
        described = schema["properties"][key]
        row = {
            "field": f"`{key}`",
            "default": _default(field),
            "allowed": _allowed(described, schema.get("$defs", {})),
            "searched": _searched(searched.get(f"{prefix}{key}")),
            "meaning": _one_line(described.get("description", "")),
        }
        rows.append(row)
    return rows


def _table_of(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if inspect.isclass(kind) and issubclass(kind, BaseModel) else None


def _table_of_list(field: FieldInfo) -> type[BaseModel] | None:
    items = [k for k in get_args(field.annotation) if inspect.isclass(k)]
    return next((k for k in items if issubclass(k, BaseModel)), None)


def _default(field: FieldInfo) -> str:
    return (
        ""
        if field.is_required()
        else f"`{_toml(field.get_default(call_default_factory=True, validated_data={}))}`"
    )


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _allowed(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return in words what a JSON schema allows."""
    if "$ref" in schema:
        return _allowed(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return ", or ".join(_allowed(one, definitions) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join(f"`{value}`" for value in values)
    if schema.get("type") == "array":
        item = schema.get("items") or {}
        inner = "tables" if item.get("$ref") else f"{_allowed(item, definitions)} each"
        return f"list: {inner}"
    limits = [f"{word} {_number(schema[key])}" for key, word in BOUNDS.items() if key in schema]
    return " ".join([KINDS.get(schema.get("type", ""), "value"), " and ".join(limits)]).strip()


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else str(value)


def _searched(declared: Any) -> str:
    if declared is None:
        return ""
    if hasattr(declared, "choices"):
        return ", ".join(f"`{choice}`" for choice in declared.choices)
    return f"{declared.low} to {declared.high}" + (" (log)" if declared.log else "")


def _subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    choices = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(next(choices, {}))


def _purpose(parser: argparse.ArgumentParser, name: str) -> str:
    action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return next((str(c.help) for c in action._choices_actions if c.dest == name), "")


def _arguments(parser: argparse.ArgumentParser) -> list[str]:
    lines = ["", "| argument | meaning |", "|---|---|"]
    for action in parser._actions:
        if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
            continue
        values = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
        if isinstance(action.metavar, tuple):
            values = " ".join(action.metavar)
        name = f"{action.option_strings[0]} {values}" if action.option_strings else values
        text = _one_line(str(action.help)).replace("%%", "%").replace("|", "\\|")
        lines.append(f"| `{name.strip()}` | {text} |")
    return lines if len(lines) > 3 else []


def _function(title: str, value: Any) -> list[str]:
    shown = [] if isinstance(value, property) else signature(title, value)
    return ["", f"### {title}", "", *shown, *docstring(value)]


def _first_paragraph(value: Any) -> str:
    return _one_line((inspect.getdoc(value) or "").split("\n\n")[0])


def _one_line(text: str) -> str:
    joined = " ".join(text.split())
    return re.sub(r"docs/([\w-]+\.md)", r"[\1](\1)", joined)


def main() -> int:
    """Write the pages, or compare with them."""
    differing = 0
    for name, page in PAGES.items():
        file, wanted = ROOT / "docs" / name, page()
        if "--check" not in sys.argv[1:]:
            file.write_text(wanted, encoding="utf-8")
        elif not file.exists() or file.read_text(encoding="utf-8") != wanted:
            print(f"{file}: differs; run python scripts/write_reference.py", file=sys.stderr)
            differing = 1
    return differing


if __name__ == "__main__":
    sys.exit(main())
