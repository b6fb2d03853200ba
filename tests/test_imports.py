"""Importing krscale changes nothing in the program that imports it."""

import json
import subprocess
import sys

import pytest
from running import environment

LIST = """
import importlib, json, pkgutil, sys, warnings

def import_all(names):
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            print(f"{name}: {error}", file=sys.stderr)

warnings.simplefilter("ignore")
import krscale
ours = ["krscale", *(found.name for found in pkgutil.walk_packages(krscale.__path__, "krscale."))]
ours = [name for name in ours if not name.endswith("__main__")]
"""

OTHERS = (
    LIST
    + """
import_all(ours)
print(json.dumps([name for name in sys.modules if not name.startswith(("krscale", "__"))]))
"""
)

COMPARE = """
import gc, logging, os, random, signal, socket, threading
import_all(json.loads(sys.stdin.read()))
import numpy, optuna, torch

def state():
    known = logging.root.manager.loggerDict
    return {
        "environment": dict(os.environ),
        "levels": {n: x.level for n, x in known.items() if isinstance(x, logging.Logger)
                   and not n.startswith("krscale")},
        "root logger": (logging.root.level, list(map(repr, logging.root.handlers))),
        "logging disabled": logging.root.manager.disable,
        "warnings": list(map(repr, warnings.filters)),
        "signals": {s.name: repr(signal.getsignal(s)) for s in signal.valid_signals()
                    if isinstance(s, signal.Signals)},
        "hooks": [repr(sys.excepthook), repr(threading.excepthook), repr(sys.displayhook)],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch types": (str(torch.get_default_dtype()), str(torch.get_default_device()),
                        torch.get_float32_matmul_precision()),
        "torch modes": (torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
                        torch.backends.mkldnn.enabled, torch.backends.cudnn.benchmark),
        "random": (torch.initial_seed(), repr(random.getstate()),
                   repr(numpy.random.get_state()), torch.get_rng_state().tolist()),
        "optuna": optuna.logging.get_verbosity(),
        "path": (list(sys.path), os.getcwd()),
        "rest": (gc.get_threshold(), sys.getrecursionlimit(), socket.getdefaulttimeout(),
                 numpy.geterr()),
    }

# krscale itself has been imported to find its modules.
for name in [name for name in sys.modules if name.partition(".")[0] == "krscale"]:
    del sys.modules[name]
before = state()
import_all(ours)
after = state()
print(json.dumps({key: [before[key], after[key]] for key in before if before[key] != after[key]}))
"""


def run(code: str, given: str = "") -> subprocess.CompletedProcess[str]:
    env = environment()
    env.pop("OMP_WAIT_POLICY", None)
    return subprocess.run(
        [sys.executable, "-c", code], input=given, env=env, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip


@pytest.fixture(scope="module")
def others() -> str:
    """All that krscale imports: what those libraries change is theirs, and is left out."""
    done = run(OTHERS)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "every module can be imported"
    return done.stdout


def test_importing_every_module_changes_nothing_in_its_host(others: str) -> None:
    done = run(LIST + COMPARE, others)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}


def test_importing_krscale_itself_loads_and_changes_nothing() -> None:
    code = (
        "import os, sys; before = dict(os.environ), set(sys.modules)\n"
        "import krscale\n"
        "print(dict(os.environ) == before[0], sorted(set(sys.modules) - before[1]))"
    )
    assert run(code).stdout == "True ['krscale']\n"
