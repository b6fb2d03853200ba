"""Running krscale's commands as a user would: as processes, on small experiments."""

from __future__ import annotations

import gc
import importlib.util
import io
import os
import resource
import secrets
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

PATHS = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
"""`PYTHONPATH` of a command's process, so that it finds the models that tests define."""

SMALL = (
    "cluster.address=local",
    "cluster.num_cpus=2",
    "teacher.width=8",
    "teacher.num_epochs=3",
    "distill.probe_grid=2",  # probes of the default grid take seconds to fit
    "views.num_views=2",
    "ladder.capacities=['1/16', '1/4']",
    "train.num_epochs=3",
    "search.trials_per_size=2",
    "search.num_final_seeds=2",
    "search.grace_epochs=1",
)
"""Overrides that make a whole search last seconds; its accuracy does not matter."""


def environment(**changes: str) -> dict[str, str]:
    """The environment of a command started by a test."""
    found = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONWARNINGS")}
    return {**found, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS, **changes}


def command(
    name: str, arguments: Sequence[str], timeout: float = 180.0, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m krscale.NAME ARGUMENTS` to its end, as a user would."""
    return subprocess.run(
        [sys.executable, "-m", f"krscale.{name}", *arguments],
        env=environment(**env),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextmanager
def python(code: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run code in a process of its own, which is killed at the end of the block.

    A process that a failed test leaves behind would make the next test fail, too.
    """
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), text=True, **options
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def script(name: str) -> ModuleType:
    """Import `scripts/NAME.py` without adding it to `sys.modules`."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_process(name: str) -> Callable[[Sequence[str]], int]:
    """Return a function that runs `krscale NAME ARGUMENTS` here and returns the exit code."""
    from krscale.cli.app import main

    return lambda arguments: main([name, *arguments])


def here(name: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command like `command`, but in the test's own process.

    A new process takes 5 seconds to import torch, Ray and MLflow. Afterwards, the environment
    variables are restored, and a private Ray is ended. Warnings are not errors: users do not see
    the warnings that libraries address to developers.
    """
    printed, said = io.StringIO(), io.StringIO()
    with own_environment(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with redirect_stdout(printed), redirect_stderr(said):
            code = in_process(name)(arguments)
    return subprocess.CompletedProcess(arguments, code, printed.getvalue(), said.getvalue())


@contextmanager
def one_ray(num_cpus: int) -> Iterator[None]:
    """Share one private Ray among the commands that `here` runs; otherwise each starts its own."""
    from krscale.cluster.connect import connect
    from krscale.config import ClusterConfig

    with own_environment(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        connect(ClusterConfig(address="local", num_cpus=num_cpus))
        yield


@contextmanager
def own_environment() -> Iterator[None]:
    """Restore the environment variables, and end a Ray that was started within the block."""
    ray = sys.modules.get("ray")
    shared = ray is not None and ray.is_initialized()
    before = dict(os.environ)
    changed = environment()
    for variable in before.keys() - changed.keys():
        del os.environ[variable]
    os.environ.update(changed)
    try:
        yield
    finally:
        if not shared:
            end_ray()
        os.environ.clear()
        os.environ.update(before)


def check_exports_here(patch: pytest.MonkeyPatch) -> None:
    """Check the files of an export in this process, which has already imported torch.

    A separate process takes seconds; only the tests in tests/export start one.
    """
    from types import SimpleNamespace

    from krscale.export import checking, writing

    def run(command: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "krscale.export.checking"]
        with redirect_stdout(io.StringIO()) as printed:
            code = checking.main(command[3:])
        return subprocess.CompletedProcess(command, code, printed.getvalue(), "")

    patch.setattr(writing, "subprocess", SimpleNamespace(run=run))


def end_ray() -> None:
    """End the Ray of this process, if there is one.

    Its processes may live a moment longer than their Python objects. Python warns of this when it
    collects the objects, so they are collected here and not in a later test.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        ray.shutdown()
        gc.collect()


def give_own_token(patch: pytest.MonkeyPatch) -> None:
    """Give the next Ray of this process a token, as `krscale` does for its own.

    Ray reads once per process whether tokens are required; another test may have caused that.
    """
    from ray._raylet import AuthenticationTokenLoader

    patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    AuthenticationTokenLoader.instance().reset_cache()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive of ours; Python before 3.11.4 does not take a filter."""
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archive) as older:
        older.extractall(folder, **safely)


def overrides(*settings: str) -> list[str]:
    """Return `--set` arguments."""
    return [part for setting in settings for part in ("--set", setting)]


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Let this process fail if it asks for more than one further GiB (on Linux)."""
    if not Path("/proc/self/status").exists():
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_DATA)  # all memory except mapped files
    status = Path("/proc/self/status").read_text(encoding="ascii")
    now = int(status.split("VmData:")[1].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (now + 2**30, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
