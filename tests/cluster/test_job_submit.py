"""`ray job submit` for real: a head as the README starts it, our runtime environment, our job."""

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pytest
from running import ROOT, SMALL, environment, overrides

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

RAY = Path(sys.executable).with_name("ray")
# The job asks the cluster it was submitted to, not a Ray of its own.
SETTINGS = (
    *(setting for setting in SMALL if not setting.startswith("cluster.")),
    "ladder.capacities=['1/4']",
    "search.num_final_seeds=1",
)


@dataclass(frozen=True)
class Head:
    """A running head: where jobs go, with which environment, and where its results land."""

    address: str
    env: dict[str, str]
    storage: Path
    process: subprocess.Popen[bytes]
    logs: tuple[Path, Path]

    def story(self) -> str:
        """Whether the head lives, and the ends of its logs: for the message of a failed test."""
        printed, session = self.logs
        files = [printed, *sorted((session / "logs").glob("*.err"))]
        files += [session / "logs" / name for name in ("raylet.out", "dashboard.log")]
        ends = [
            f"{file.name}:\n{file.read_text(errors='replace')[-1500:]}"
            for file in files
            if file.is_file() and file.stat().st_size
        ]
        return "\n".join([f"head's exit code: {self.process.poll()}", *ends])


@dataclass(frozen=True)
class Submission:
    """What `ray job submit` ended with, and how long before the end its first job line came."""

    code: int
    output: str
    seconds_ahead: float


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, between those of Ray's workers and those the kernel hands out.

    A port from the kernel may go to any connection of the tests beside this one before Ray binds
    it, and a head that loses one of its ports dies later, at the first job.
    """
    ports: list[int] = []
    candidates = random.SystemRandom().sample(range(20_000, 32_000), 1_000)
    while len(ports) < count:
        port = candidates.pop()
        with suppress(OSError), socket.create_server(("", port)):
            ports.append(port)
    return ports


def wait_until_up(process: subprocess.Popen[bytes], address: str, token: str, log: Path) -> None:
    request = urllib.request.Request(
        f"{address}/api/version", headers={"Authorization": f"Bearer {token}"}
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        refused = suppress(urllib.error.URLError, ConnectionError, TimeoutError)
        with refused, urllib.request.urlopen(request, timeout=5):
            return
        time.sleep(0.3)
    pytest.fail(f"no Ray head at {address} within 60 s:\n{log.read_text()}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the head by its own id, then whatever is left of its session; never `ray stop`."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    home = tmp_path_factory.mktemp("home")
    # Ray's sockets live below it, and the path of a socket has at most 107 characters.
    temporary = Path(tempfile.mkdtemp(prefix="kr", dir="/tmp"))
    token = secrets.token_hex(32)
    env = environment(
        HOME=str(home),
        PATH=f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=token,
        MPLCONFIGDIR=matplotlib.get_configdir(),
    )
    # The job must find krscale in what was uploaded, and nowhere else.
    del env["PYTHONPATH"]
    options = (
        *("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port"),
        *("dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port"),
        *("node-manager-port", "object-manager-port"),
    )
    ports = dict(zip(options, free_ports(len(options)), strict=True))
    command = [
        *(RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"),
        *("--temp-dir", temporary, "--dashboard-host=127.0.0.1"),
        *(f"--{option}={port}" for option, port in ports.items()),
    ]
    log = home / "head.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            env=env,
            cwd=home,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{ports['dashboard-port']}"
        wait_until_up(process, address, token, log)
        logs = (log, temporary / "session_latest")
        yield Head(address, env, home / "krscale-runs", process, logs)
    finally:
        stop(process)
        shutil.rmtree(temporary, ignore_errors=True)


def submit(head: Head, *arguments: str) -> Submission:
    """Submit `python ARGUMENTS` as the README says, and read what streams back."""
    command = [
        *(str(RAY), "job", "submit", "--address", head.address),
        *("--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml"),
        *("--", "python", *arguments),
    ]
    lines: list[str] = []
    first = None
    with subprocess.Popen(
        command,
        env=head.env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if first is None and any("Running entrypoint" in before for before in lines):
                first = time.monotonic()
            lines.append(line)
    ended = time.monotonic()
    return Submission(process.returncode, "".join(lines), ended - (first or ended))


def test_a_job_streams_ends_well_and_leaves_its_curve(head: Head) -> None:
    done = submit(head, "-m", "krscale.tune", "jobs/digits.toml", *overrides(*SETTINGS))
    assert done.code == 0, done.output + head.story()
    assert done.seconds_ahead > 2.0, "nothing came before the end:\n" + done.output
    curve = json.loads((head.storage / "digits" / "curve.json").read_text())
    (size,) = curve["sizes"]
    assert size["capacity"] == "1/4"
    assert set(size["methods"]) == {"plain", "kd", "kr"}
    assert str(head.storage) in done.output
    spool = (head.storage / "digits" / "tracking" / "spool.jsonl").read_text().splitlines()
    tags = json.loads(spool[1])["content"]["tags"]
    assert tags["krscale.ray_job"] in done.output, "the id that `ray job submit` printed"


def test_a_refused_config_fails_the_job(head: Head) -> None:
    done = submit(head, "-m", "krscale.tune", "jobs/digits.toml", *overrides("train.num_epoch=3"))
    assert done.code != 0
    unknown = "unknown key 'train.num_epoch'. Did you mean 'train.num_epochs'?"
    assert unknown in done.output, done.output + head.story()
    assert "exit code 2" in done.output
    assert "Traceback" not in done.output
