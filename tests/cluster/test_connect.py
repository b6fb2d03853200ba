"""The private Ray of a command: its processes, and how they end when the command is killed."""

import os
import subprocess
import sys
import time

import psutil
import pytest
import ray
from running import environment

from krscale.cluster import connect
from krscale.config import ClusterConfig
from krscale.errors import UserError

CODE = """
import time
from krscale.cluster.connect import connect
from krscale.config import ClusterConfig
connect(ClusterConfig(address="local", num_cpus=1))
print("connected", flush=True)
time.sleep(100)
"""
# Ray's agents look once a minute whether their node is still there.
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


@pytest.mark.cluster
@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_its_processes_are_in_other_groups_and_end_with_the_command() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CODE], env=environment(), stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "connected\n"
        started = others(process.pid)
        listening = {
            (part.name(), connection.laddr.ip.removeprefix("::ffff:"))
            for part in psutil.Process(process.pid).children(recursive=True)
            for connection in part.net_connections()
            if connection.status == psutil.CONN_LISTEN
        }
        process.kill()
    assert any("gcs_server" in args for _, args in started.values()), started
    assert [args for group, args in started.values() if group == process.pid] == []
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
    assert {address for _, address in listening} == {"127.0.0.1"}, listening
    deadline = time.monotonic() + 30
    while left := [a for _, a in others(process.pid).values() if not a.startswith(LINGERING)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


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
