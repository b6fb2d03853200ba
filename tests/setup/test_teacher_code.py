"""Whose code a teacher is made of."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from krscale.config import Experiment, with_values
from krscale.data import Description
from krscale.setup import teacher_code
from krscale.setup.teacher_code import Code, compare_code, kept_folder, read_code

TASK = Description(10, (1, 8, 8), 1000)


def own() -> Experiment:
    return with_values(
        Experiment(), {"teacher.model": "narrow_student:Narrow", "teacher.options": {}}, "test"
    )


def test_the_zoo_has_no_code_of_the_users() -> None:
    assert read_code(Experiment(), TASK) == Code()
    assert Code().key() == {}


def test_modules_of_the_users_own_are_hashed() -> None:
    found = read_code(own(), TASK)
    assert "narrow_student" in found.modules
    assert not any(name.startswith(("torch", "krscale")) for name in found.modules)
    assert found.outputs == ()
    assert found == read_code(own(), TASK)


def test_without_source_the_outputs_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_code, "_source", lambda module: None)
    found = read_code(own(), TASK)
    assert len(found.outputs) == 4 * 10
    near = Code(outputs=tuple(value * 1.0001 for value in found.outputs))
    far = Code(outputs=tuple(value + 1 for value in found.outputs))
    assert compare_code(found, near) == ""
    assert "answers otherwise" in compare_code(found, far)
    assert "answers otherwise" in compare_code(found, Code(outputs=found.outputs[1:]))
    assert found.key() != far.key()


def test_a_module_that_differs_is_named() -> None:
    before, now = Code({"a": "1", "b": "2"}), Code({"a": "1", "b": "3", "c": "4"})
    assert compare_code(before, now) == "modules b, c"
    assert compare_code(now, now) == ""
    assert before.key() != now.key()


def test_a_teacher_that_an_older_krscale_kept_is_used_if_it_still_does_the_same(
    tmp_path: Path,
) -> None:
    plain, coded, code = tmp_path / "plain", tmp_path / "coded", Code({"a": "1"})
    assert kept_folder(plain, coded, code, lambda folder: True) == coded, "there is none"
    plain.mkdir()
    assert kept_folder(plain, coded, code, lambda folder: False) == coded
    assert kept_folder(plain, coded, code, lambda folder: True) == plain
    assert json.loads((plain / "code.json").read_text()) == json.loads(json.dumps(asdict(code)))
    assert kept_folder(plain, coded, code, lambda folder: False) == plain, "asked once"
    assert kept_folder(plain, coded, Code({"a": "2"}), lambda folder: True) == coded
    coded.mkdir()
    assert kept_folder(plain, coded, code, lambda folder: True) == coded
