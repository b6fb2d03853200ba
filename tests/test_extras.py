"""The core works alone, and an error names each missing package with its extra."""

import ast
import json
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from running import ROOT

from krscale.cli.common import run_command
from krscale.extras import EXTRAS, missing_extra

CORE = {"torch", "numpy", "pyarrow", "pydantic"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMPORTED_AS = {"pillow": "PIL", "scikit-learn": "sklearn", "nvidia-ml-py": "pynvml"}

# All packages of the extras are missing, as on a machine with the core alone.
WITHOUT = """
import json, sys

missing = set(json.loads(sys.argv[1]))


class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            return None
        return self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import torch, krscale, krscale.errors

torch.manual_seed(0)


def network(width):
    block = lambda a, b: torch.nn.Sequential(torch.nn.Conv2d(a, b, 3, padding=1), torch.nn.ReLU())
    head = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width, 3))
    return torch.nn.Sequential(block(1, width), block(width, width), block(width, width), *head)


labels = torch.arange(60) % 3
images = torch.randn(60, 1, 8, 8) + labels.view(-1, 1, 1, 1)
teacher, student = network(8), network(2)
kr = krscale.KRLoss.from_networks(
    teacher, student, [(images, labels)], granularity=2, allow_poor_teacher=True
)
kr.begin_epoch(0.0)
kr(images, labels).backward()
logits = student(images), teacher(images), labels
assert krscale.losses.dkd(*logits).shape == (60,)
assert all(parameter.grad is not None for parameter in student.parameters())
assert not missing & set(sys.modules), missing & set(sys.modules)

try:
    krscale.distill
except krscale.errors.UserError as error:
    assert "krscale[search]" in str(error)
else:
    raise AssertionError("it needs more than the core")

assert callable(krscale.search)
try:
    krscale.search(teacher=teacher, students=network, data=[(images, labels)])
except krscale.errors.UserError as error:
    assert "krscale[search]" in str(error)
else:
    raise AssertionError("it needs more than the core")

from krscale.cli.app import main

print(main(["tune", "--dry-run"]))
"""


def names(requirements: list[str]) -> set[str]:
    return {Requirement(text).name for text in requirements}


def test_the_core_needs_four_packages() -> None:
    assert names(PROJECT["dependencies"]) == CORE


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_table_of_extras_is_that_of_the_project(extra: str) -> None:
    declared = names(PROJECT["optional-dependencies"][extra])
    assert {IMPORTED_AS.get(name, name) for name in declared} == set(EXTRAS[extra])


def test_everything_that_is_imported_is_of_the_core_or_of_an_extra() -> None:
    known = CORE | {package for packages in EXTRAS.values() for package in packages}
    known |= set(sys.stdlib_module_names) | {"krscale", "typing_extensions"}  # pydantic needs it
    for file in (ROOT / "krscale").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            found = []
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                found = [node.module]
            assert {name.partition(".")[0] for name in found} <= known, file


def test_the_core_works_alone_and_a_command_names_what_it_needs() -> None:
    missing = [package for packages in EXTRAS.values() for package in packages]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, json.dumps(missing)], cwd=ROOT, capture_output=True,
        text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2\n"
    assert "pip install 'krscale[search]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("package", "extra"),
    [("optuna.samplers", "search"), ("timm", "vision"), ("onnx", "export"), ("PIL", "search")],
)
def test_a_missing_package_is_named_with_its_extra(
    package: str, extra: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(argv: object) -> int:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    assert run_command(command, []) == 2
    said = capsys.readouterr().err
    assert repr(package.partition(".")[0]) in said
    assert f"pip install 'krscale[{extra}]'" in said


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'my_model'", name="my_model"),
        ModuleNotFoundError("without a name"),
        ImportError("cannot import name 'x' from 'ray'", name="ray"),
        ValueError("ray"),
    ],
)
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert missing_extra(error) is None
