"""krscale's own JSON is read strictly: no value is converted to another type."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from krscale.config import as_record, read_record
from krscale.errors import DamagedFileError
from krscale.files import write_json


@dataclass(frozen=True)
class Inner:
    name: str


@dataclass(frozen=True)
class Outer:
    number: int
    share: float
    shape: tuple[int, int]
    parts: tuple[Inner, ...]
    by_name: dict[str, float]
    note: str | None = None


WHOLE = Outer(3, 0.5, (1, 2), (Inner("a"), Inner("b")), {"x": 1.0})


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {**asdict(WHOLE), "of a newer version": 1})
    assert read_record(path, Outer) == WHOLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": "3"}, r"number: .*integer \(got '3'\)"),
        ({"number": True}, "number: .*integer"),
        ({"number": 3.5}, "number: .*integer"),
        ({"share": None}, "share: .*number"),
        ({"shape": [1]}, r"the field 'shape\.1' is missing"),
        ({"shape": [1, 2, 3]}, "shape: "),
        ({"parts": [{"name": "a"}, {}]}, r"the field 'parts\.1\.name' is missing"),
        ({"parts": {"name": "a"}}, "parts: "),
        ({"by_name": {"x": []}}, r"by_name\.x: "),
        ({"note": "a" * 500, "number": "n" * 500}, r"number: .*\.\.\.\)"),
    ],
)
def test_a_field_that_is_something_else_is_named(change, message, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DamagedFileError, match=message) as caught:
        as_record(path, {**asdict(WHOLE), **change}, Outer, "Delete it.")
    assert str(caught.value).startswith(f"{path}: damaged: ")
    assert str(caught.value).endswith(". Delete it.")
    assert len(str(caught.value)) < len(str(path)) + 250


def test_a_mapping_is_a_record_too(tmp_path: Path) -> None:
    assert as_record(tmp_path, {"a": 1}, dict[str, float]) == {"a": 1.0}
    with pytest.raises(DamagedFileError, match=r"a: .*number"):
        as_record(tmp_path, {"a": "1"}, dict[str, float])
