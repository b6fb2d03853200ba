"""Whole-number labels of any type are read as the same numbers; others are refused by row."""

import numpy as np
import pyarrow as pa
import pytest

from krscale.data.reading.label_column import label_values
from krscale.errors import UserError

LABELS = [2, 0, 1, 1]


def place(number: int) -> str:
    return f"row {number}"


def dictionary(values: pa.Array, index: pa.DataType) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(LABELS, index), values)


@pytest.mark.parametrize(
    "column",
    [
        *(
            pa.array(LABELS, kind())
            for kind in (
                pa.int8, pa.int16, pa.int32, pa.int64, pa.uint8, pa.uint16, pa.uint32, pa.uint64,
                pa.float32, pa.float64,
            )
        ),
        pa.array(np.array(LABELS, np.float16)),
        pa.array(LABELS).cast(pa.decimal128(20, 0)),
        dictionary(pa.array([0, 1, 2], pa.uint8()), pa.uint8()),
        dictionary(pa.array([0, 1, 2], pa.uint64()), pa.int32()),
        dictionary(pa.array([0, 1, 2], pa.int16()), pa.uint32()),
        pa.array([9, *LABELS], pa.uint16())[1:],
    ],
    ids=lambda column: str(column.type),
)  # fmt: skip
def test_whole_numbers_of_every_type(column: pa.Array) -> None:
    values = label_values(column, place)
    assert values.dtype == np.int64
    assert values.tolist() == LABELS


def test_truth_values_are_two_classes() -> None:
    values = label_values(pa.array([True, False]), place)
    assert values.dtype == np.int64
    assert values.tolist() == [1, 0]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_text_of_every_type(kind: pa.DataType) -> None:
    values = label_values(pa.array(["b", "a"]).cast(kind), place)
    assert values.dtype == object
    assert values.tolist() == ["b", "a"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([0, None, None], pa.uint8()), r"row 1: .* missing \(null\) \(and 1 more"),
        (dictionary(pa.array([0, 1, None], pa.uint8()), pa.int8()), r"row 0: .* missing \(null\)"),
        (pa.array([None, None], pa.null()), r"row 0: .* missing \(null\)"),
        (pa.array([0.0, float("nan")]), r"row 1: the label is missing \(NaN\)"),
        (pa.array([0.0, 1.0, 0.5]), "row 2: the label 0.5 is not a whole number"),
        (pa.array([0.0, float("inf")]), "row 1: the label inf is too large"),
        (pa.array([0, 2**63], pa.uint64()), "row 1: the label 9223372036854775808 is too large"),
        (pa.array([b"0"]), "row 0: .* of type binary; allowed: whole numbers, or text"),
        (pa.array([[0]]), "row 0: .* of type list"),
    ],
)
def test_no_label(column: pa.Array, message: str) -> None:
    with pytest.raises(UserError, match=message):
        label_values(column, place)
