"""Imports point down as the contracts require, and the ground floor needs only torch."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FORBIDDEN = (
    *("ray", "optuna", "mlflow", "pyarrow", "pydantic", "numpy", "sklearn", "matplotlib"),
    *("rich", "safetensors", "filelock", "timm", "torchvision"),
)

# Imports modules and checks every import statement of krscale's own code. Blocking the packages
# altogether is no option: torch imports numpy if it is installed, and a package that torch has
# imported is available to every module.
IMPORTER = """
import builtins, importlib, json, sys

forbidden, modules = json.loads(sys.argv[1]), json.loads(sys.argv[2])
original = builtins.__import__


def checked(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "")
    if not level and importer.partition(".")[0] == "krscale" and name.split(".")[0] in forbidden:
        raise ImportError(f"{importer} imports {name}")
    return original(name, globals, locals, fromlist, level)


builtins.__import__ = checked
for name in modules:
    importlib.import_module(name)
# 2 seconds of a processor, in every process: only what compiles or trains needs torch's compiler.
assert "torch._dynamo" not in sys.modules, "the compiler of torch is imported"
print(len(modules))
"""


def modules_of(*parts: str) -> list[str]:
    """Every module at or below these parts of krscale, by file."""
    found = []
    for part in parts:
        path = ROOT / "krscale" / part
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        assert files, part
        for file in files:
            names = file.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(names[:-1] if names[-1] == "__init__" else names))
    return found


GROUND = modules_of("errors", "extras", "files", "metrics", "knowledge", "models", "pareto")
METHODS = modules_of("methods", "losses", "kr")


def import_without(forbidden: tuple[str, ...], *modules: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", IMPORTER, json.dumps(forbidden), json.dumps(modules)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_imports_point_down() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [str(linter)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@cache
def imported(file: Path) -> set[str]:
    """Every module and name a file imports, at any depth, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize(
    ("package", "place"),
    [
        ("ray.train", "cluster"),
        ("ray.tune", "search/on_ray"),
        ("optuna", "search"),
        ("mlflow", "tracking"),
    ],
)
def test_one_place_knows(package: str, place: str) -> None:
    home = ROOT / "krscale"
    importers = [
        file.relative_to(home)
        for file in home.rglob("*.py")
        if any(f"{name}.".startswith(f"{package}.") for name in imported(file))
    ]
    assert importers, "nobody imports it: the rule is out of date"
    assert all(file.is_relative_to(place) for file in importers), importers


def test_ground_floor_needs_torch_alone() -> None:
    done = import_without(FORBIDDEN, *GROUND)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(GROUND) >= 16


def test_methods_need_torch_and_their_settings() -> None:
    """Their settings are pydantic models, but only `krscale.config` imports pydantic."""
    done = import_without(tuple(set(FORBIDDEN) - {"pydantic"}), *METHODS)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(METHODS) >= 14
    importers = [
        file.name
        for file in (ROOT / "krscale" / "methods").rglob("*.py")
        if any(name.partition(".")[0] == "pydantic" for name in imported(file))
    ]
    assert importers == []


def test_config_needs_neither_torch_nor_ray() -> None:
    done = import_without(("torch", "ray", "optuna", "mlflow", "numpy"), "krscale.config")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("package", "module"),
    [
        ("pydantic", "krscale.config"),
        ("json", "krscale.files"),
        ("torch", "krscale.models.capacity"),
    ],
)
def test_the_guard_refuses(package: str, module: str) -> None:
    """Without this the tests above could pass because nothing is ever refused."""
    done = import_without((package,), module)
    assert done.returncode != 0
    assert f"imports {package}" in done.stderr
