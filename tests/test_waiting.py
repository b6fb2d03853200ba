"""How torch's threads wait for each other in a command of krscale.

In its workers: tests/cluster/test_connect.py, which starts a Ray.
"""

import re
import subprocess
import sys

import pytest
from running import environment

COMMAND = (
    "import sys; from krscale.cli.common import run_command\n"
    "def work(argv):\n    import krscale.models.capacity  # which loads torch\n    return 0\n"
    "sys.exit(run_command(work, []))"
)
WITHOUT_TORCH = """
import ctypes, importlib.util, pathlib, sys
from krscale.cli.common import run_command

def work(argv):
    folder = pathlib.Path(importlib.util.find_spec("torch").origin).parent
    for file in [*folder.glob("lib/libgomp*"), *folder.parent.glob("torch.libs/libgomp*")]:
        ctypes.CDLL(str(file))
    return 0

sys.exit(run_command(work, []))
"""
"""The same with torch's OpenMP alone, which reads the variables when it is loaded."""


def run(code: str, **own: str) -> "subprocess.CompletedProcess[str]":
    env = environment(OMP_DISPLAY_ENV="VERBOSE", OMP_NUM_THREADS="2")
    env.pop("OMP_WAIT_POLICY", None)  # an earlier test may have run a command in this process
    return subprocess.run(
        [sys.executable, "-c", code], env={**env, **own}, capture_output=True, text=True, check=True
    )


def spins(code: str, **own: str) -> int:
    """Return how often a waiting thread spins before it sleeps, as torch's OpenMP reports it."""
    found = re.search(r"GOMP_SPINCOUNT = '(\w+)'", run(code, **own).stderr)
    if found is None:
        pytest.skip("this torch was built with another OpenMP than GNU's")
    return int(found[1])


def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise() -> None:
    assert spins(COMMAND) == 0
    assert spins(WITHOUT_TORCH) == 0
    assert spins(WITHOUT_TORCH, OMP_WAIT_POLICY="active") > 0


def test_a_command_loads_torch_only_after_it_has_said_so() -> None:
    modules = ["app", "tune", "distill", "teach", "insight", "space", "store", "pick", "sync"]
    done = run(
        f"import importlib, sys\nfor name in {modules}:\n"
        "    importlib.import_module(f'krscale.cli.{name}'); print(name, 'torch' in sys.modules)"
    )
    assert done.stdout.splitlines() == [f"{name} False" for name in modules]
