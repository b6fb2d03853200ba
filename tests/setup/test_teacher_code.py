"""Which code a teacher is made of."""

from __future__ import annotations

import importlib
import inspect
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from krscale.config import Experiment, LadderStudent, with_values
from krscale.data import Description
from krscale.files import read_json
from krscale.models import libraries
from krscale.models.given import available
from krscale.setup import teacher_code
from krscale.setup.teacher_code import Code, compare_code, kept_folder, read_code, read_student_code

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
    assert compare_code(found, read_code(own(), TASK)) == ""


def test_without_source_the_outputs_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_code, "find_sources", lambda names: {"narrow_student": None})
    found = read_code(own(), TASK)
    assert found.modules == {}
    assert len(found.outputs) == 4 * 10
    near = Code(outputs=tuple(value * 1.0001 for value in found.outputs))
    far = Code(outputs=tuple(value + 1 for value in found.outputs))
    assert compare_code(found, near) == ""
    assert "answers otherwise" in compare_code(found, far)
    assert "answers otherwise" in compare_code(found, Code(outputs=found.outputs[1:]))
    assert compare_code(found, Code()) == "", "outputs that differ each time are not kept"
    assert found.key() == near.key(), "another processor finds the same folder"


NETWORK = """
import json
from functools import partial
from pathlib import Path
import numpy as np
from torch import nn, randn
{top}
FACTOR = json.loads((Path(__file__).parent / "factor.json").read_text())

class Net(nn.Module):
    tap_paths = ("stem",)

    def __init__(self, num_classes, in_channels, width):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        {within}
        return self.head(self.stem(x * FACTOR).mean((2, 3)){noise})
"""
Reader = Callable[..., Code]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """Write the modules of a network, and read its code as a new process would."""
    package, written = tmp_path / "own_pkg", {"own_pkg", "own_stats"}
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "factor.json").write_text("1.0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def forget() -> None:
        for name in [n for n in sys.modules if n.partition(".")[0] in written]:
            del sys.modules[name]
        importlib.invalidate_caches()

    def found(top: str = "", within: str = "pass", noise: str = "", **files: str) -> Code:
        text = NETWORK.format(top=top, within=within, noise=noise)
        (package / "net.py").write_text(text)
        for name, content in files.items():
            place = tmp_path if name.startswith("own_") else package
            (place / f"{name}.py").write_text(content)
        forget()
        values = {"teacher.model": "own_pkg.net:Net", "teacher.options": {}}
        return read_code(with_values(Experiment(), values, "test"), TASK)

    yield found
    forget()


@pytest.mark.parametrize(
    ("top", "within"),
    [
        ("from own_stats import MEAN", "pass"),
        ("from .stats import MEAN", "pass"),
        ("from . import stats", "pass"),
        ("from own_pkg import stats as s", "pass"),
        ("import own_pkg.stats", "pass"),
        ("", "from own_stats import MEAN"),
        ("TABLE = {}", "from .stats import MEAN as TABLE"),
        ("from own_stats import MEAN; part = partial(print, MEAN)", "pass"),
    ],
)
def test_what_a_module_imports_is_followed(read: Reader, top: str, within: str) -> None:
    name = "own_stats" if "own_stats" in top + within else "stats"
    before = read(top, within, **{name: "from math import pi\nMEAN = (0.5, 0.5)\n"})
    other = read(top, within, **{name: "from math import pi\nMEAN = (0.4, 0.5)\n"})
    module = name if name.startswith("own_") else "own_pkg.stats"
    assert compare_code(before, other).endswith(module)
    assert before.key() != other.key()
    assert not any(name.startswith(("torch", "numpy", "math", "json")) for name in before.modules)


def test_texts_count_and_comments_do_not(read: Reader) -> None:
    first = read(top='TEXT = """\n# one\n"""')
    assert compare_code(first, read(top='# said\n\nTEXT = (\n"""\n# one\n""")')) == ""
    assert "own_pkg.net" in compare_code(first, read(top='TEXT = """\n# two\n"""'))


def test_a_file_that_is_read_counts(read: Reader, tmp_path: Path) -> None:
    before = read()
    assert compare_code(before, read()) == ""
    (tmp_path / "own_pkg" / "factor.json").write_text("2.0")
    assert "a file that it reads" in compare_code(before, read())


def test_what_is_imported_within_installed_code_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imports are not followed there; the outputs of the network show the change."""
    package = tmp_path / "site-packages" / "installed_pkg"
    package.mkdir(parents=True)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (package / "__init__.py").write_text("")
    text = NETWORK.format(top="from .parts import scale", within="x = scale(x)", noise="")
    (package / "net.py").write_text(text)
    (package / "factor.json").write_text("1.0")
    values = {"teacher.model": "installed_pkg.net:Net", "teacher.options": {}}
    found = []
    for factor in (1, 1, 3):
        (package / "parts.py").write_text(f"def scale(x):\n    return x * {factor}\n")
        for name in [name for name in sys.modules if name.startswith("installed_pkg")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        found.append(read_code(with_values(Experiment(), values, "test"), TASK))
    assert compare_code(found[0], found[1]) == ""
    assert "answers otherwise" in compare_code(found[1], found[2])
    assert found[1].key() == found[2].key(), "teachers that were kept are found"


@pytest.mark.parametrize(
    ("name", "options", "counts"),
    [
        ("hf:folder", {}, True),
        ("timm:net", {"checkpoint_path": "file"}, True),
        ("timm:net", {}, False),
    ],
)
def test_the_files_that_a_library_builds_a_network_from_count(
    monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, str], *, counts: bool
) -> None:
    value = 1.0

    def builder(name: str, where: str) -> Callable[..., nn.Module]:
        def build(num_classes: int, in_channels: int, fresh: bool, **options: str) -> nn.Module:
            network = nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))
            nn.init.constant_(network[1].weight, value)
            return network

        return build

    for library in ("hf", "timm"):
        monkeypatch.setitem(libraries.LIBRARIES, library, builder)
    student = LadderStudent(name="small", model=name, options=options)
    before = read_student_code(student, TASK)
    assert compare_code(before, read_student_code(student, TASK)) == ""
    value = 2.0
    assert bool(compare_code(before, read_student_code(student, TASK))) == counts


class Noisy(nn.Sequential):
    """A student that a script defines."""


def test_what_a_given_student_does_in_training_alone_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Noisy, "__module__", "__main__")
    source = "class Noisy: {}"
    monkeypatch.setattr(inspect, "getsource", lambda kind: source)
    student = LadderStudent(name="small", model="object:student.small")

    def read(probability: float) -> Code:
        def build() -> nn.Module:
            layers = nn.Flatten(), nn.Linear(64, 10), nn.Dropout(probability)
            return Noisy(*layers)

        with available({"object:student.small": build}):
            return read_student_code(student, TASK)

    before = read(0.1)
    assert compare_code(before, read(0.1)) == ""
    assert "layers" in compare_code(before, read(0.5))
    assert before.outputs == read(0.5).outputs
    assert compare_code(replace(before, layers=""), read(0.5)) == "", "of an older krscale"
    source = "class Noisy: one = 1"
    assert "classes" in compare_code(before, read(0.1))


class Printing(nn.Linear):
    """A layer whose representation needs a value of its weights, or differs each time."""

    def __init__(self, what: str) -> None:
        super().__init__(64, 10)
        self.what = what

    def extra_repr(self) -> str:
        return str(self.bias[0].item() if self.what == "a value" else random.random())


@pytest.mark.parametrize("what", ["a value", "noise"])
def test_a_given_student_may_print_anything(what: str) -> None:
    student = LadderStudent(name="small", model="object:student.small")
    with available({"object:student.small": lambda: nn.Sequential(nn.Flatten(), Printing(what))}):
        codes = [read_student_code(student, TASK) for _ in range(2)]
    assert compare_code(*codes) == ""


def test_a_network_that_answers_otherwise_each_time_is_the_same(read: Reader) -> None:
    seeded, free = " + randn(4)", " + int.from_bytes(__import__('os').urandom(2))"
    assert read(noise=seeded).outputs, "random numbers are drawn from one seed"
    assert compare_code(read(noise=seeded), read(noise=seeded)) == ""
    before = read(noise=free)
    assert before.outputs == ()
    assert before.modules
    assert compare_code(before, read(noise=free)) == ""


def test_the_random_numbers_of_the_process_are_left_as_they_were() -> None:
    state = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()
    read_code(own(), TASK)
    after = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()
    assert after == state


def test_a_module_that_differs_is_named() -> None:
    before, now = Code({"a": "1", "b": "2"}), Code({"a": "1", "b": "3", "c": "4"})
    assert compare_code(before, now) == "modules b, c"
    assert compare_code(now, now) == ""
    assert before.key() != now.key()


def test_a_teacher_that_an_older_krscale_kept_is_used_if_it_still_does_the_same(
    tmp_path: Path,
) -> None:
    plain, code = tmp_path / "plain", Code({"a": "1"})

    def coded(number: int) -> Path:
        return tmp_path / f"coded{number}"

    assert kept_folder(plain, coded, code, lambda folder: True) == coded(0), "there is none"
    plain.mkdir()
    assert kept_folder(plain, coded, code, lambda folder: False) == coded(0)
    assert kept_folder(plain, coded, code, lambda folder: True) == plain
    assert read_json(plain / "code.json") == json.loads(json.dumps(asdict(code)))
    assert kept_folder(plain, coded, code, lambda folder: False) == plain, "asked once"
    assert kept_folder(plain, coded, Code({"a": "2"}), lambda folder: True) == coded(0)
    coded(0).mkdir()
    assert kept_folder(plain, coded, code, lambda folder: True) == coded(0)
    assert kept_folder(plain, coded, Code(), lambda folder: True) == plain, "of the zoo"


def test_teachers_of_one_source_that_answer_otherwise_are_kept_apart(tmp_path: Path) -> None:
    def coded(number: int) -> Path:
        return tmp_path / f"coded{number}"

    def folder(*outputs: float) -> Path:
        return kept_folder(tmp_path / "plain", coded, Code({"a": "1"}, outputs), lambda f: False)

    coded(0).mkdir()
    (coded(0) / "code.json").write_text(json.dumps(asdict(Code({"a": "1"}, (1.0, 0.3333)))))
    assert folder(1.0, 0.3334) == coded(0), "another processor"
    assert folder(1.0, 0.4) == coded(1)
    coded(1).mkdir()
    (coded(1) / "code.json").write_text(json.dumps(asdict(Code({"a": "1"}, (1.0, 0.4)))))
    assert folder(1.0, 0.4) == coded(1)
    assert folder(1.0, 0.5) == coded(2)
