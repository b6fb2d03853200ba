"""Packages that are also commands import what they offer only when it is used."""

import importlib
import json
import subprocess
import sys

import pytest
from running import environment

PACKAGES = ("data", "report", "store")
HEAVY = ("torch", "numpy", "pyarrow", "matplotlib", "plotly", "ray", "optuna", "mlflow", "PIL")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_that_is_offered_is_there(package: str) -> None:
    module = importlib.import_module(f"krscale.{package}")
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"'krscale.{package}' has no attribute 'missing'"):
        _ = module.missing
    with pytest.raises(ImportError, match="cannot import name 'missing'"):
        exec(f"from krscale.{package} import missing")


def test_the_packages_alone_import_nothing_heavy() -> None:
    """`python -m krscale.report --help` imports the package first."""
    code = (
        "import json, sys\n"
        f"import {', '.join(f'krscale.{package}' for package in PACKAGES)}\n"
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
