"""Read labels from a column or an array: whole numbers of any type, or text."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from krscale.data.reading.classes import Values
from krscale.data.source import Place
from krscale.errors import UserError

_LARGEST = 2**63 - 1


def label_values(column: Any, place: Place) -> Values:
    """Return a column's labels: `[N]` int64, or `[N]` names as objects.

    Whole numbers may be integers of any width, signed or not, decimals or floats without a fraction
    (which pandas makes of a column that once had gaps), or truth values (0 and 1).
    Dictionary-encoded columns are decoded first.

    Args:
        column: An Arrow array.
        place: Describes where the value with a given number is.

    Raises:
        UserError: If a label is missing, or is not a whole number or text; the message names the
            first.
    """
    while pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    _refuse(place, column.is_null(), "the label is missing (null)")
    if pa.types.is_integer(kind):
        return whole_numbers(column.to_numpy(zero_copy_only=False), place)
    if pa.types.is_boolean(kind):
        return column.to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]
    if pa.types.is_floating(kind):
        return _without_fraction(column.to_numpy(zero_copy_only=False), place)
    if pa.types.is_decimal(kind):
        floats = np.array([float(value) for value in column.to_pylist()])
        return _without_fraction(floats, place)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return np.array(column.to_pylist(), dtype=object)
    raise UserError(
        f"{place(0)}: data.files.label_column: of type {kind}; allowed: whole numbers, or text."
    )


def whole_numbers(values: Values, place: Place) -> Values:
    """Return an array's labels, which may be numbers or truth values of any type, as `[N]` int64.

    Args:
        values: `[N]`.
        place: Describes where the value with a given number is.

    Raises:
        UserError: If a label is missing (NaN), has a fraction or is too large; the message names
            the first.
    """
    if values.dtype.kind == "f":
        return _without_fraction(values, place)
    if values.dtype.kind == "u":
        _refuse(place, values > _LARGEST, "the label {} is too large to be a class", values)
    return values.astype(np.int64)


def _without_fraction(values: npt.NDArray[np.floating[Any]], place: Place) -> Values:
    values = values.astype(np.float64)
    _refuse(place, np.isnan(values), "the label is missing (NaN)")
    _refuse(place, values != np.floor(values), "the label {} is not a whole number", values)
    _refuse(place, np.abs(values) > 2**53, "the label {} is too large to be a class", values)
    return values.astype(np.int64)


def _refuse(place: Place, wrong: Any, text: str, values: Values | None = None) -> None:
    rows = np.flatnonzero(np.asarray(wrong))
    if len(rows):
        first = int(rows[0])
        what = text.format(values[first] if values is not None else "")
        more = f" (and {len(rows) - 1} more from there on)" if len(rows) > 1 else ""
        raise UserError(f"{place(first)}: {what}{more}.")
