"""Quotation marks in lists: in CSV, and in TSV, where they may be text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from krscale.data.reading.text_tables import read_text, refuse_line_breaks
from krscale.errors import UserError


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ('path\tlabel\na\t"big\nb\t"small\nc\tplain\n', ['"big', '"small', "plain"]),
        ('path\tlabel\na\t"big" one\nb\t7" disc\n', ['"big" one', '7" disc']),
        ('path\tlabel\na\t"12"" disc"\nb\tplain\n', ['12" disc', "plain"]),
        ('"path"\t"label"\n"a"\t"big"\n"b"\t""\n', ["big", ""]),
        ('path\tlabel\na\t"two\twords"\nb\tplain\n', ["two\twords", "plain"]),
        ("path\tlabel\r\na\tbig\r\n", ["big"]),
    ],
)
def test_quotation_marks_between_tabs(tmp_path: Path, content: str, labels: list[str]) -> None:
    path = tmp_path / "list.tsv"
    path.write_bytes(content.encode())
    found = read_text(path)
    assert found.column_names == ["path", "label"]
    assert found["label"].to_pylist() == labels


def test_a_quotation_mark_that_is_left_open_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text('path,label\na,"big\nb,"small\nc,plain\n')
    labels = np.array(read_text(path)["label"].to_pylist(), object)
    with pytest.raises(UserError, match=r"row 0: the label .* is a quotation mark left open"):
        refuse_line_breaks(labels, "row {}".format)
    refuse_line_breaks(np.arange(3), str)
    refuse_line_breaks(np.array(['"big'], object), str)
