"""Importing krscale changes nothing in the program that imports it."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator

from running import ROOT, environment

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

COMPARE = """
import gc, logging, os, random, signal, socket, threading
for name in json.loads(sys.stdin.read()):
    try:
        importlib.import_module(name)
    except ImportError:  # a name within a module
        pass
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


def imported(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the modules that statements import when run, and names that may be modules."""
    for statement in body:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            yield statement.module
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)
        elif isinstance(statement, (ast.If, ast.Try, ast.With)) and not typing_only(statement):
            yield from imported(statement.body)


def typing_only(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test)


def others() -> list[str]:
    """All other modules that krscale imports; what these change is not krscale's doing."""
    found = {
        name
        for path in (ROOT / "krscale").rglob("*.py")
        if path.name != "__main__.py"
        for name in imported(ast.parse(path.read_text(encoding="utf-8")).body)
    }
    return sorted(name for name in found if name.partition(".")[0] not in ("krscale", "__future__"))


def test_importing_every_module_changes_nothing_in_its_host() -> None:
    done = run(LIST + COMPARE, json.dumps(others()))
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "every module can be imported"
    assert json.loads(done.stdout.splitlines()[-1]) == {}


def test_importing_krscale_itself_loads_and_changes_nothing() -> None:
    code = (
        "import os, sys; before = dict(os.environ), set(sys.modules)\n"
        "import krscale\n"
        "print(dict(os.environ) == before[0], sorted(set(sys.modules) - before[1]))"
    )
    assert run(code).stdout == "True ['krscale']\n"
