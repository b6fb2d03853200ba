"""Finding the file and row of a column's value, and finding a column by its name."""

from pathlib import Path

import numpy as np
import pytest

from krscale.data.reading.own_files import ImageLocations, column_number
from krscale.errors import UserError


def test_rows_are_counted_file_by_file(monkeypatch):
    calls, cumsum = [], np.cumsum
    monkeypatch.setattr(np, "cumsum", lambda *a, **k: calls.append(a) or cumsum(*a, **k))
    place = ImageLocations([Path("a"), Path("b"), Path("c")], [2, 0, 3], "image", start=10)
    words = [place(number).split(": ") for number in range(5)]
    assert [(file, row) for file, _, row in words] == [
        ("a", "row 10"), ("a", "row 11"), ("c", "row 0"), ("c", "row 1"), ("c", "row 2"),
    ]  # fmt: skip
    assert len(calls) == 1, "files are many, and so are the rows that are asked for"


def test_a_column_is_found_by_its_name():
    assert column_number(["a", "b", "c", "c"], "b", "here") == 1
    with pytest.raises(UserError, match="here: 2 columns are named 'c'"):
        column_number(["a", "b", "c", "c"], "c", "here")
    with pytest.raises(UserError, match="here: unknown column 'd'"):
        column_number(["a"], "d", "here")
