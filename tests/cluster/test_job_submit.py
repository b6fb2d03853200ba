"""A cluster as the README starts it, on a machine where krscale ran before: jobs, joining, tokens.

The commands are read from the README; only ports and folders are this test's own.
"""

import json
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from drilling import Drill
from ray_nodes import Commands, Node, fresh_machine, start_head
from running import ROOT, SMALL, overrides

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

# Without `cluster.*` the job joins the cluster it was submitted to, and starts no Ray of its own.
SETTINGS = (
    *(setting for setting in SMALL if not setting.startswith("cluster.")),
    "teacher.num_epochs=1",
    "ladder.capacities=['1/4']",
    "search.trials_per_size=1",
    "search.num_final_seeds=1",
    "search.cpus_per_trial=2",  # both: one worker trains all, and the imports take most of its time
)


@dataclass(frozen=True)
class Head:
    """A running head: where jobs go, with which environment, and where its results land."""

    commands: Commands
    node: Node
    env: dict[str, str]
    storage: Path
    session: Path

    @property
    def address(self) -> str:
        return self.node.dashboard

    @property
    def port(self) -> int:
        return self.node.ports["port"]

    @property
    def token_file(self) -> Path:
        return Path(self.env["HOME"]) / ".ray" / "auth_token"

    def story(self) -> str:
        """Whether the head runs, and the ends of its logs, for the message of a failed test."""
        logs = self.session / "logs"
        files = [self.node.log, *sorted(logs.glob("*.err"))]
        files += [logs / name for name in ("raylet.out", "dashboard.log")]
        ends = [
            f"{file.name}:\n{file.read_text(errors='replace')[-1500:]}"
            for file in files
            if file.is_file() and file.stat().st_size
        ]
        return "\n".join([f"head's exit code: {self.node.process.poll()}", *ends])


@dataclass(frozen=True)
class Submission:
    """How `ray job submit` ended, and how long before its end the first line of the job came."""

    code: int
    output: str
    seconds_ahead: float


def shell(
    script: str, env: dict[str, str], timeout: float = 180.0
) -> subprocess.CompletedProcess[str]:
    """Run a script in a new shell, as a user would."""
    return subprocess.run(
        ["bash", "-c", script], env=env, cwd=ROOT, capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip


def tune(storage: Path, *settings: str, before: str = ":") -> str:
    """Return the command of a search that lasts seconds."""
    tiny = (f"storage_path={storage}", "search.methods=['plain']")
    arguments = ["--json", *overrides(*SETTINGS, *tiny, *settings)]
    return f"{before}\n{shlex.join([sys.executable, '-m', 'krscale.tune', *arguments])}"


def connected(settings: str, before: str = ":") -> str:
    """Return a command that, like a search, joins a cluster or starts its own."""
    code = (
        "import ray\n"
        "from krscale.cluster.connect import connect\n"
        "from krscale.config import ClusterConfig\n"
        f"connect(ClusterConfig({settings}))\n"
        "print('CPUs:', ray.cluster_resources()['CPU'])\n"
    )
    return f"{before}\n{shlex.join([sys.executable, '-c', code])}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    # Ray's sockets are below it, and the path of a socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="kr", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def env(home: Path, temporary: Path) -> dict[str, str]:
    """The environment of a shell on a fresh machine."""
    # No idle workers when a job connects: its own have its environment, and are started for it.
    return fresh_machine(home, temporary, RAY_prestart_worker_first_driver="0")


@pytest.fixture(scope="module")
def head(home: Path, temporary: Path, env: dict[str, str]) -> Iterator[Head]:
    commands = Commands.read()
    # A run comes first, with a Ray of its own, as in the README.
    first = shell(connected("num_cpus=1"), env)
    assert first.stdout == "CPUs: 1.0\n", first.stderr
    assert not (home / ".ray").exists(), "krscale leaves no token on the machine"
    node = start_head(commands, env, home, 2)
    try:
        yield Head(commands, node, env, home / "krscale-runs", temporary / "ray" / "session_latest")
    finally:
        node.stop()


def submit_command(head: Head, *arguments: str) -> str:
    """The README's command, with this head's address and another job."""
    return head.commands.submit_to(head.address, *arguments)


def submit(head: Head, *arguments: str) -> Submission:
    """Submit `python ARGUMENTS` as the README says, and read what streams back."""
    lines: list[str] = []
    first = None
    with subprocess.Popen(
        ["bash", "-c", submit_command(head, *arguments)],
        # A terminal shows the client's lines at once; in a pipe they would be buffered.
        env={**head.env, "PYTHONUNBUFFERED": "1"},
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


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="an archive of the code, not a checkout")
def test_an_archive_is_submitted_like_a_folder(head: Head, tmp_path: Path) -> None:
    archive = tmp_path / "job.zip"
    packed = ("git", "archive", "--format=zip", f"--output={archive}", "HEAD")
    subprocess.run([*packed, "krscale", "jobs", "search_spaces"], cwd=ROOT, check=True)
    command = submit_command(head, "-m", "krscale.tune", "jobs/digits.toml", "--set", "name=a b/")
    done = shell(command.replace("--working-dir .", f"--working-dir {archive}"), head.env)
    assert "a b/" in done.stdout, done.stdout + done.stderr + head.story()
    assert done.returncode == 1, "Ray's, of a job that refuses its settings"


@pytest.mark.drill  # the suite tests krscale's own exit code and line (cli/test_bad_input.py)
def test_a_refused_config_fails_the_job(head: Head, drill: Drill) -> None:
    drill.injected("a misspelt key in a submitted job", kind="bad input")
    drill.must_hold("the job fails with one line, which names the key that is meant")
    done = submit(head, "-m", "krscale.tune", "jobs/digits.toml", *overrides("train.num_epoch=3"))
    assert done.code == 1, "Ray's, as the README says; krscale's own is 2"
    unknown = "unknown key 'train.num_epoch'. Did you mean 'train.num_epochs'?"
    assert unknown in done.output, done.output + head.story()
    assert "exit code 2" in done.output
    assert "Traceback" not in done.output
    drill.held("one line; Ray's exit code, as the README says")


@pytest.mark.drill
def test_a_stopped_job_leaves_no_trial_running(head: Head, drill: Drill) -> None:
    drill.injected("ray job stop to a running search")
    drill.must_hold("it ends like Ctrl-C, with nothing RUNNING in MLflow")
    slow = ("name=stopped", "train.num_epochs=500", "search.early_stopping=none")
    arguments = ("-m", "krscale.tune", "jobs/digits.toml", *overrides(*SETTINGS, *slow))
    with subprocess.Popen(
        ["bash", "-c", submit_command(head, *arguments)],
        # In a pipe, the client's lines would be buffered until the search is done.
        env={**head.env, "PYTHONUNBUFFERED": "1"}, cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        output = ""
        for line in process.stdout:
            output += line
            if re.search(r"[1-9] running", line):
                job = re.findall(r"raysubmit_\w+", output)[0]
                asked = f"{head.commands.export}\nray job stop --no-wait --address {head.address} "
                stopped = shell(asked + job, head.env)
                assert stopped.returncode == 0, stopped.stderr
    assert "krscale: interrupted by SIGTERM; the same command again continues." in output, (
        output + head.story()
    )
    assert process.returncode == 0, "Ray's of a job that was stopped, as the README says"
    database = sqlite3.connect(head.storage / "mlflow.db")
    states = database.execute(
        "select status, count(*) from runs where run_uuid in (select run_uuid from tags where "
        "key = 'krscale.search' and value = 'stopped') group by status"
    ).fetchall()
    database.close()
    assert [status for status, _ in states] == ["FAILED"], states
    drill.held("it said that the same command continues; all its runs in MLflow are ended")


@pytest.mark.drill  # the suite tests those of a private Ray (tests/cluster/test_connect.py)
def test_workers_of_a_job_have_what_must_be_set_before_torch(head: Head) -> None:
    code = (
        "import os, sys, ray\n"
        "from krscale.cluster.connect import connect\n"
        "from krscale.config import ClusterConfig\n"
        "@ray.remote\n"
        "def look():\n"
        "    names = 'OMP_WAIT_POLICY', 'MALLOC_ARENA_MAX'\n"
        "    return *map(os.environ.get, names), 'torch' in sys.modules\n"
        "connect(ClusterConfig())\n"
        "print('worker:', ray.get(look.remote()))\n"
    )
    done = submit(head, "-c", code)
    assert "worker: ('passive', '1', False)" in done.output, done.output + head.story()


def test_only_its_owner_can_read_the_token(head: Head) -> None:
    assert oct(head.token_file.stat().st_mode & 0o777) == "0o600"
    forgotten = submit_command(head, "-c", "pass").removeprefix(f"{head.commands.export}\n")
    done = shell(forgotten, head.env)
    assert done.returncode == 1
    assert "Missing authentication token" in done.stderr + done.stdout, "as the README says"


@pytest.mark.drill
def test_a_whole_search_joins_the_cluster_of_its_node_by_auto(head: Head, home: Path) -> None:
    joined = tune(home / "joined", "cluster.address=auto", before=head.commands.export)
    done = shell(joined, head.env)
    assert done.returncode == 0, done.stderr + head.story()
    assert json.loads(done.stdout)["sizes"]


def test_a_search_joins_the_cluster_of_its_node_by_auto(head: Head) -> None:
    done = shell(connected("address='auto'", before=head.commands.export), head.env)
    assert done.stdout == "CPUs: 2.0\n", done.stderr + head.story()


@pytest.mark.drill
@pytest.mark.parametrize("demanded", [True, False])
def test_a_search_by_itself_runs_beside_the_cluster(demanded: bool, head: Head) -> None:
    # The cluster came first, then `make run`, in a shell with or without the token mode.
    before = head.commands.export if demanded else ":"
    done = shell(connected("num_cpus=1", before), head.env)
    assert done.stdout == "CPUs: 1.0\n", done.stderr


@pytest.mark.drill  # the suite tests the sentences (test_token.py), a command (test_access.py)
def test_an_error_says_which_of_mode_and_token_is_missing(head: Head, home: Path) -> None:
    code = (
        "import sys; from krscale.cli.common import run_command\n"
        "def join(argv):\n"
        "    from krscale.cluster.connect import connect\n"
        "    from krscale.config import ClusterConfig\n"
        "    connect(ClusterConfig(address=argv[0]))\n    return 0\n"
        "sys.exit(run_command(join, sys.argv[1:]))"
    )
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    address = f"127.0.0.1:{head.port}"
    missing, unsent, other = "and there is none here", "but it is not sent", "is not the cluster's"
    cases = (
        # RAY_TMPDIR, where the head writes its address: of several Rays, `auto` takes any.
        ("auto", {"HOME": str(elsewhere), "RAY_TMPDIR": str(head.session.parents[1])}, missing),
        (address, {"HOME": str(elsewhere)}, missing),
        (address, {}, unsent),
        (address, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another"}, other),
    )
    for where, own, expected in cases:
        command = shlex.join([sys.executable, "-c", code, where])
        done = shell(command, head.env | own, timeout=180)  # 'auto' asks every Ray on the machine
        assert done.returncode == 2, done.stderr
        error = done.stderr.splitlines()[-1]
        start = f"krscale: error: cluster.address: the Ray cluster at {where!r} demands a token"
        assert error.startswith(start), done.stderr
        assert expected in error
        assert "Traceback" not in done.stderr
