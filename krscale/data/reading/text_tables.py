"""Read lists of images as text: CSV, and TSV with or without quotation marks."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from krscale.data.reading.classes import Values
from krscale.data.source import Place
from krscale.errors import UserError
from krscale.foreign import regular

_QUOTED = r'^"([^"]|"")*"$'


def read_text(path: Path) -> Any:
    """Return a table whose columns are all text.

    In CSV, quotation marks quote fields. In a `.tsv` they do so only if each field that begins with
    one is quoted as a whole, as programs write it. Otherwise they are text, as IANA defines
    tab-separated values: an unclosed `"big` would merge the following rows into one field.

    Raises:
        UserError: If the file is UTF-16.
        pyarrow.ArrowException: If it is not such a table.
    """
    with regular(path).open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise UserError(f"{path}: it is UTF-16; save it as UTF-8.")
    if path.suffix.lower() != ".tsv":
        return _read(path, pa.csv.ParseOptions())
    quoted = pa.csv.ParseOptions(delimiter="\t")
    try:
        plain = _read(path, pa.csv.ParseOptions(delimiter="\t", quote_char=False))
    except pa.ArrowException:  # a field may hold a tab or the end of a line
        return _read(path, quoted)
    return _read(path, quoted) if _is_quoted(plain) else plain


_MARKS = frozenset(",;\t|")
"""Characters that separate columns."""


def refuse_line_breaks(labels: Values, place: Place) -> None:
    """Refuse labels that contain a line break because a quotation mark was not closed.

    Args:
        labels: `[N]`, text or numbers.
        place: Describes where each of them is.

    Raises:
        UserError: If there are such labels; the message names the first.
    """
    if labels.dtype != object:
        return
    # A label of two lines contains a separator of columns only if it has absorbed rows.
    swallowed = (row for row, label in enumerate(labels) if "\n" in label and _MARKS & set(label))
    first = next(swallowed, None)
    if first is not None:
        raise UserError(
            f"{place(first)}: the label {labels[first][:60]!r} goes over the end of a line; is a "
            "quotation mark left open? One that is text is written twice, within two others."
        )


def _read(path: Path, options: Any) -> Any:
    with pa.csv.open_csv(path, parse_options=options) as reader:
        names = reader.schema.names
    return pa.csv.read_csv(
        path,
        parse_options=options,
        convert_options=pa.csv.ConvertOptions(
            strings_can_be_null=False, column_types=dict.fromkeys(names, pa.string())
        ),
    )


def _is_quoted(table: Any) -> bool:
    """Whether some fields begin with a quotation mark, and each of these is closed at its end."""
    names = [name for name in table.column_names if name.startswith('"')]
    if not all(re.match(_QUOTED, name) for name in names):
        return False
    found = bool(names)
    for column in table.columns:
        begun = pc.filter(column, pc.starts_with(column, '"'))
        found |= len(begun) > 0
        if not pc.all(pc.match_substring_regex(begun, _QUOTED), min_count=0).as_py():
            return False
    return found
