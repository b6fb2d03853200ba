"""Nodes of a Ray cluster on this machine, started with `ray start` as the README says."""

from __future__ import annotations

import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import psutil
import pytest
from running import ROOT, environment

RAY = Path(sys.executable).with_name("ray")
_PORTS = (
    *("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port"),
    *("metrics-export-port", "node-manager-port", "object-manager-port"),
)
# Hides all other folders beside the home; the mounts exist only for this process.
_HIDE = """
mount --bind "$1" /mnt
mount -t tmpfs none "$(dirname "$1")"
mkdir "$1"
mount --move /mnt "$1"
cd "$1"
shift
exec "$@"
"""
_HEAD_PORTS = ("port", "dashboard-port", "ray-client-server-port")


@dataclass(frozen=True)
class Commands:
    """The README's commands for a cluster, in its order."""

    export: str
    token: str
    start: str
    submit: str

    @classmethod
    def read(cls) -> Commands:
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        block = text.split("**On a cluster.**")[1].split("```")[1]
        lines = block.replace("\\\n", " ").splitlines()
        return cls(*(line.removeprefix("$ ") for line in lines if line.startswith("$ ")))

    def submit_to(self, dashboard: str, *arguments: str) -> str:
        """Return the README's command, with another dashboard and `python ARGUMENTS`."""
        command = self.submit.replace("http://127.0.0.1:8265", dashboard)
        assert command != self.submit
        submit, separator, _ = command.partition(" -- ")
        return f"{self.export}\nexec {submit}{separator}{shlex.join(['python', *arguments])}"


@dataclass(frozen=True)
class Node:
    """A running node: its first process, which has started the others, and its ports."""

    process: subprocess.Popen[bytes]
    ports: dict[str, int]
    log: Path

    @property
    def dashboard(self) -> str:
        """Address of a head's dashboard, which takes jobs."""
        return f"http://127.0.0.1:{self.ports['dashboard-port']}"

    def lose(self) -> None:
        """Kill all processes of the node at once, as if its machine were gone."""
        ray_start = psutil.Process(self.process.pid)
        for process in [ray_start, *ray_start.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(timeout=10)

    def stop(self) -> None:
        """End the node by its process id, then all that is left of it; never `ray stop`."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=20)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=10)


def fresh_machine(home: Path, temporary: Path, **variables: str) -> dict[str, str]:
    """Return the environment of a shell on a fresh machine, without a token and krscale.

    Args:
        home: The user's home folder there.
        temporary: Ray's folder; the path of a socket has at most 107 characters.
        variables: Further variables to set.
    """
    found = environment(
        HOME=str(home),
        PATH=f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
        RAY_TMPDIR=str(temporary),
        MPLCONFIGDIR=matplotlib.get_configdir(),
        **variables,
    )
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "OMP_WAIT_POLICY"):
        found.pop(name, None)
    # A job must find krscale in what was uploaded, and nowhere else.
    del found["PYTHONPATH"]
    return found


def start_head(
    commands: Commands, env: dict[str, str], home: Path, num_cpus: int, before: Sequence[str] = ()
) -> Node:
    """Start a head with the README's commands; return once it takes jobs.

    Args:
        commands: The README's.
        env: Environment of its machine (`fresh_machine`).
        home: The user's home folder there.
        num_cpus: Its number of CPUs.
        before: A command that runs the shell of the node, such as `hidden(home)`.
    """
    script = f"{commands.export}\n{commands.token}\nexec env {commands.start}"
    head = _start([*before, "bash", "-c", script], env, home, num_cpus, (*_HEAD_PORTS, *_PORTS))
    try:
        _wait_until_up(head, home / ".ray" / "auth_token")
    except BaseException:
        head.stop()
        raise
    return head


def start_node(
    commands: Commands, env: dict[str, str], home: Path, num_cpus: int, head: Node,
    before: Sequence[str] = (),
) -> Node:  # fmt: skip
    """Let a node join; return once it has. The arguments are those of `start_head`."""
    address = f"127.0.0.1:{head.ports['port']}"
    # The nodes share this machine: the kernel chooses the ports of their workers.
    script = (
        f"{commands.export}\nexec ray start --address={address} --temp-dir={env['RAY_TMPDIR']} "
        f"--min-worker-port=0 --max-worker-port=0"
    )
    node = _start([*before, "bash", "-c", script], env, home, num_cpus, _PORTS)
    deadline = time.monotonic() + 90
    while "Ray runtime started" not in node.log.read_text():
        if time.monotonic() > deadline or node.process.poll() is not None:
            node.stop()
            pytest.fail(f"no node within 90 s:\n{node.log.read_text()}")
        time.sleep(0.1)
    return node


def hidden(home: Path) -> list[str]:
    """Return the start of a command that finds only `home` in the folder around it.

    Empty where this is impossible: it needs root and Linux.
    """
    with suppress(OSError):
        found = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
        if found.returncode == 0:
            return ["unshare", "--mount", "bash", "-ec", _HIDE, "bash", str(home)]
    return []


def _start(
    words: list[str], env: dict[str, str], home: Path, num_cpus: int, options: tuple[str, ...]
) -> Node:
    ports = dict(zip(options, free_ports(len(options)), strict=True))
    own = [
        *("--block", f"--num-cpus={num_cpus}", "--disable-usage-stats"),
        *(f"--{option}={port}" for option, port in ports.items()),
    ]
    log = home / "ray.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*words[:-1], f"{words[-1]} {shlex.join(own)}"],
            env=env,
            cwd=home,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Node(process, ports, log)


def free_ports(count: int) -> list[int]:
    """Free ports above those of Ray's workers and below those that the kernel assigns.

    The kernel could give one of its own ports to a connection of another test before Ray binds it.
    A head that loses one of its ports dies later, at the first job.
    """
    ports: list[int] = []
    candidates = random.SystemRandom().sample(range(20_000, 32_000), 1_000)
    while len(ports) < count:
        port = candidates.pop()
        with suppress(OSError), socket.create_server(("", port)):
            ports.append(port)
    return ports


def _wait_until_up(head: Node, token: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and head.process.poll() is None:
        refused = suppress(urllib.error.URLError, ConnectionError, TimeoutError, FileNotFoundError)
        with refused:
            headers = {"Authorization": f"Bearer {token.read_text()}"}
            request = urllib.request.Request(f"{head.dashboard}/api/version", headers=headers)
            with urllib.request.urlopen(request, timeout=5):
                return
        time.sleep(0.3)
    pytest.fail(f"no Ray head at {head.dashboard} within 90 s:\n{head.log.read_text()}")
