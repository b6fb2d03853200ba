"""Fixtures and hooks of all tests: few threads, and without the user's cluster or storage."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from drilling import Recorder, drill, remember_outcome
from filelock import FileLock
from hypothesis import settings
from running import check_exports_here, end_ray

__all__ = ["drill"]

# Unset outside `make test-processors`.
NUM_THREADS = int(os.environ.get("KRSCALE_TEST_THREADS", "1"))

# By default, Ray's workers have a low priority (15) and get little time beside other tests.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")  # as krscale sets it

# A shell starts background processes (`&`, nohup) with these signals ignored. The commands that
# tests start would inherit that, and tests could not stop them with these signals.
for ignored, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, handler)

# A slow example means that the machine is busy; it is no fault of krscale.
settings.register_profile("krscale", deadline=None)
settings.load_profile("krscale")


LEFT_OUT = ("browser", "drill")
"""Markers of tests that run only where `-m` asks for them; each has a make target of its own."""
DRILL_SECONDS = 900
"""Timeout of a drill without a longer one: the limits of many files are for their short tests."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without looking for garbage, and never look for any among what is there by then.

    Libraries, modules of tests and thousands of tests live as long as the process.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the slow tests first, and leave out what `LEFT_OUT` names.

    First, so that none of the test processes ends long before the others.
    """
    items.sort(key=lambda item: item.get_closest_marker("cluster") is None)
    markers = [marker for marker in LEFT_OUT if marker not in config.option.markexpr]
    if not torch.cuda.is_available():
        markers.append("gpu")
    left_out = [item for item in items if any(map(item.get_closest_marker, markers))]
    items[:] = [item for item in items if not any(map(item.get_closest_marker, markers))]
    config.hook.pytest_deselected(items=left_out)
    for item in items:
        limit = item.get_closest_marker("timeout")
        if item.get_closest_marker("drill") and not (limit and limit.args[0] > DRILL_SECONDS):
            item.add_marker(pytest.mark.timeout(DRILL_SECONDS), append=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that records drills, see `drilling`."""
    parser.addoption("--drill-record", metavar="FILE", help="append each drill's record to FILE")


def pytest_configure(config: pytest.Config) -> None:
    """Record drills in the process that gathers the reports."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(config))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep a test's outcome for the fixture `drill`."""
    report = yield
    remember_outcome(item, report)
    return report


@pytest.fixture(autouse=True)
def _few_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Limit torch's threads, as tests share two cores with their clusters; unset two variables."""
    before = torch.get_num_threads()
    torch.set_num_threads(NUM_THREADS)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("KRSCALE_STORAGE_PATH", raising=False)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let files reach the disk later: only a power cut would show it. Drills wait as ever."""
    with pytest.MonkeyPatch.context() as patch:
        if "drill" not in request.config.option.markexpr:
            patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def _ray_ends_with_its_file() -> Iterator[None]:
    """Fail if a file's tests leave Ray running: the next file in this process would use it."""
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        end_ray()
        pytest.fail("tests of this file leave a Ray running")


@pytest.fixture
def checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check exports in the test's own process."""
    check_exports_here(monkeypatch)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` fills once, in one test process, for all test processes."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = factory.mktemp(name)
        make(folder)
        return folder
    folder = factory.getbasetemp().parent / f"{name}-of-all"
    done = folder.with_suffix(".done")
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished search; tests must not change it."""
    from finished_run import make_finished_run

    torch.set_num_threads(NUM_THREADS)
    return made_once(tmp_path_factory, "finished", make_finished_run) / "tiny"


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with the finished search `small`, made without tracking; tests copy it."""
    from finished_search import search

    def make(folder: Path) -> None:
        search(folder / "storage", "tracking.enabled=false")

    torch.set_num_threads(NUM_THREADS)
    return made_once(tmp_path_factory, "searched", make) / "storage"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised MLflow database without experiments, to copy; making one takes seconds."""
    return made_once(tmp_path_factory, "mlflow", _make_database) / "mlflow.db"


def _make_database(folder: Path) -> None:
    from krscale.tracking.address import resolve_address
    from krscale.tracking.server import Server, prepare_mlflow

    address = resolve_address("", folder)
    prepare_mlflow(address)
    Server(address, "krscale-template")
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        database.execute("delete from experiments where name = 'krscale-template'")


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """Let this process be the only worker of a process group."""
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
