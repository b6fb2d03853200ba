"""The private Ray of a command: its processes, and how they end when the command is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import psutil
import pytest
import ray
from running import environment, own_environment

from krscale.allocator import VARIABLES
from krscale.cluster import connect
from krscale.config import ClusterConfig
from krscale.errors import UserError

CODE = """
import os, ray, subprocess, sys, time
from krscale.cluster.connect import connect
from krscale.config import ClusterConfig
connect(ClusterConfig(address='local', num_cpus=1))
names = 'OMP_WAIT_POLICY', 'MALLOC_MMAP_MAX_', 'MALLOC_ARENA_MAX'
seen = lambda: (*map(os.environ.get, names), 'torch' in sys.modules)
print(*ray.get(ray.remote(seen).remote()), flush=True)
stranger = {k: v for k, v in os.environ.items() if not k.startswith('RAY_AUTH')}
stranger['RAY_gcs_server_port_wait_time_s'] = '1'
os.environ['RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER'] = '0'  # 127.0.0.1 is meant
stranger['RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER'] = '0'
join = 'import ray, sys; ray.init(address=sys.argv[1])'
address = ray.get_runtime_context().gcs_address
for env in (stranger, os.environ):
    done = subprocess.run([sys.executable, '-c', join, address], env=env,
                          capture_output=True, text=True)
    print(done.returncode, 'InvalidAuthToken' in done.stderr, flush=True)
time.sleep(100)
"""
# Ray's agents check only once a minute whether their node still exists.
LINGERING = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def others(session: int) -> dict[int, tuple[int, str]]:
    """Id -> process group and command of the session's processes, without its leader."""
    command = ["ps", "-ww", "-o", "pid=,pgid=,args=", "-s", str(session)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    return {int(pid): (int(group), args) for pid, group, args in rows if int(pid) != session}


class Node:
    """Ray's node, of which some processes have died."""

    def __init__(self, *dead: str) -> None:
        self.dead = dead

    def dead_processes(self) -> tuple[str, ...]:
        return self.dead


@pytest.mark.parametrize(
    ("node", "gone"), [(None, False), (Node(), False), (Node("gcs_server"), True)]
)
def test_a_head_is_gone_when_one_of_its_processes_is(
    node: Node | None, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray._private.worker, "_global_node", node)
    monkeypatch.setattr(connect, "DYING_SECONDS", 0.1)
    assert connect._head_is_gone() is gone


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[IO[str], int, Path]]:
    """Output, process id and home of one command with a private Ray, for all tests."""
    home = tmp_path_factory.mktemp("home")
    env = environment(HOME=str(home))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "OMP_WAIT_POLICY"):
        env.pop(name, None)
    for name in [n for n in env if n.startswith("MALLOC_") or n == "GLIBC_TUNABLES"]:
        del env[name]
    with subprocess.Popen(
        [sys.executable, "-c", CODE], env=env, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        yield process.stdout, process.pid, home
        process.kill()


@pytest.mark.cluster
def test_it_demands_a_token_and_leaves_none_on_the_machine(
    command: tuple[IO[str], int, Path],
) -> None:
    printed, _, home = command
    # Waiting threads sleep. torch's OpenMP reads this when torch is imported; malloc reads its
    # settings when a process starts.
    assert printed.readline() == "passive 0 1 False\n"
    assert [printed.readline() for _ in range(2)] == ["1 True\n", "0 False\n"]
    assert not (home / ".ray").exists()


@pytest.mark.cluster
@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_its_processes_are_in_other_groups_and_end_with_the_command(
    command: tuple[IO[str], int, Path],
) -> None:
    _, pid, _ = command
    started = others(pid)
    listening = {
        (part.name(), connection.laddr.ip.removeprefix("::ffff:"))
        for part in psutil.Process(pid).children(recursive=True)
        for connection in part.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    os.kill(pid, signal.SIGKILL)
    assert any("gcs_server" in args for _, args in started.values()), started
    assert [args for group, args in started.values() if group == pid] == []
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
    assert {address for _, address in listening} == {"127.0.0.1"}, listening
    deadline = time.monotonic() + 30
    while left := [a for _, a in others(pid).values() if not a.startswith(LINGERING)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.mark.parametrize("seconds", [100.0, 140.0])
def test_a_node_that_starts_slowly_is_waited_for(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself gives a node 30 s."""
    clock = [0.0]

    def get_node(*_: object) -> dict[str, str]:
        clock[0] += 10.0
        if clock[0] < seconds:
            raise RuntimeError("no node yet")
        return {"node": "here"}

    monkeypatch.setattr(connect.services, "get_node", get_node)
    monkeypatch.setattr(
        connect, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda _: None)
    )
    with connect._with_time_to_start():
        if seconds < connect.START_SECONDS:
            assert connect.services.get_node("address", "node") == {"node": "here"}
        else:
            with pytest.raises(RuntimeError, match="no node yet"):
                connect.services.get_node("address", "node")
    assert connect.services.get_node is get_node


@pytest.mark.parametrize("error", [Exception("The node timed out.\nmore"), OSError("no space")])
def test_a_private_ray_that_does_not_come_up_is_one_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(connect, "use_own_token", lambda: None)
    first = str(error).splitlines()[0]
    with pytest.raises(UserError, match=f"could not be started on this machine: {first}"):
        connect.connect(ClusterConfig())


@pytest.mark.parametrize(
    ("own", "given", "found"),
    [
        ({}, {}, {"OMP_WAIT_POLICY": "passive", **VARIABLES}),
        ({"OMP_WAIT_POLICY": "active"}, {}, {"OMP_WAIT_POLICY": "active", **VARIABLES}),
        ({"MALLOC_ARENA_MAX": "4"}, {}, {"OMP_WAIT_POLICY": "passive", "MALLOC_ARENA_MAX": "4"}),
        # A job's own settings are in its environment as well, and Ray refuses to set them again.
        ({"MALLOC_ARENA_MAX": "4"}, {"MALLOC_ARENA_MAX": "4"}, {"OMP_WAIT_POLICY": "passive"}),
    ],
)
def test_workers_of_a_cluster_get_what_they_need_when_they_start(
    own: dict[str, str], given: dict[str, str], found: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    job = json.dumps({"runtime_env": {"env_vars": given}})
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connect, "check_answers", lambda *_: None)
    monkeypatch.setattr(connect, "_init", lambda _, **options: seen.append(options["runtime_env"]))
    with own_environment():
        for name in connect.WORKERS_TOO:
            os.environ.pop(name, None)
        os.environ.update(own, RAY_JOB_CONFIG_JSON_ENV_VAR=job)
        before = {name: os.environ.get(name) for name in VARIABLES}
        connect.connect(ClusterConfig(address="127.0.0.1:1"))
        assert {name: os.environ.get(name) for name in VARIABLES} == before, "for workers alone"
    assert seen == [{"env_vars": found}]


def test_a_number_of_workers_beyond_all_reason_is_refused_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A list of a hundred billion places to ask an autoscaler for fits into no memory."""
    asked: list[int] = []
    monkeypatch.setattr(connect, "num_slots", lambda _: 2)
    monkeypatch.setattr(connect, "can_grow", lambda: True)
    monkeypatch.setattr(connect, "describe_nodes", lambda _: "2 nodes of 1 CPU")
    monkeypatch.setattr(connect, "placement_group", lambda places, **_: asked.append(len(places)))
    monkeypatch.setattr(connect, "remove_placement_group", lambda _: None)
    config = ClusterConfig(wait_seconds=0.01)
    for count in (3, 100_000_000_000):
        with pytest.raises(UserError, match=f"train.num_workers: this needs {count} times 1 CPU"):
            connect.require({"CPU": 1.0}, config, "train.num_workers", count)
    assert asked == [3, connect.MOST_ASKED]


@pytest.mark.parametrize("given", [None, "60"])
def test_a_cluster_is_asked_a_few_times_only(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray asks 120 times where it starts here, and would do so with a wrong token as well."""
    name, seen = "RAY_gcs_server_port_wait_time_s", list[str | None]()
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connect, "check_answers", lambda *_: None)
    monkeypatch.setattr(connect, "_init", lambda *_, **__: seen.append(os.environ.get(name)))
    with own_environment():
        os.environ.pop(name, None)
        if given:
            os.environ[name] = given
        connect.connect(ClusterConfig(address="127.0.0.1:1"))
        assert os.environ[name] == (given or "120")
    assert seen == ["3"]
