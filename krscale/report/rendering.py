"""Pages from the templates in this folder; every value in them is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from krscale.files import write_text
from krscale.showing import printable


@dataclass(frozen=True)
class Cell:
    """A cell; `kind` is `""` (a number), `"text"` (left-aligned) or `"best"` (bold)."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a page; the first `num_text` headings are left-aligned."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    num_text: int = 1


def texts(row: Sequence[str], num_text: int) -> list[Cell]:
    """Return a row whose first `num_text` cells are left-aligned."""
    return [Cell(text, "text" if i < num_text else "") for i, text in enumerate(row)]


def write_rendered(path: Path, template: str, **values: Any) -> None:
    """Fill a template and write it atomically.

    Args:
        path: Path of the file.
        template: Name of the template, e.g. `report.html.j2`.
        values: Its variables. All are escaped except `Markup`.
    """
    text = _templates().get_template(template).render(values)
    write_text(path, text)


@cache
def _templates() -> Environment:
    found = Environment(
        loader=PackageLoader("krscale.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["data_uri"] = _data_uri
    return found


def _finalize(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
