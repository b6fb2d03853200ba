"""A submitted search with trials of two workers, on changing nodes that share no disk."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from drill_searches import Report, trials_of
from drilling import Drill
from optuna.trial import TrialState
from ray_nodes import Commands, Node, fresh_machine, hidden, start_head, start_node
from running import ROOT, overrides
from s3_server import CREDENTIALS, SECRET, query, s3_server

from krscale.errors import UserError
from krscale.search.studies.retries import was_interrupted
from krscale.storage.objects import Objects
from krscale.training.checkpoint import read_note

pytestmark = [pytest.mark.drill, pytest.mark.cluster, pytest.mark.timeout(1200)]

NAME, NUM_TRIALS, NUM_FINALS = "whole", 5, 2
SEARCH = (
    "storage_path=s3://bucket/runs",
    f"name={NAME}",
    "teacher.width=8",
    "teacher.num_epochs=1",
    "teacher.allow_poor=true",
    "views.num_views=2",
    "ladder.capacities=['1/4']",
    "train.num_workers=2",
    "train.num_epochs=16",
    "search.methods=['kr']",
    f"search.trials_per_size={NUM_TRIALS}",
    f"search.num_final_seeds={NUM_FINALS}",
    "search.early_stopping=none",
    "search.checkpoint_seconds=0",
    "tracking.enabled=false",
)
WORK_SECONDS = 30.0
"""Time within which a node that has joined must take part in a trial."""


@dataclass
class Machines:
    """Machines of a test, each with a home and a temporary folder of its own, and an S3 server.

    Where possible, a node cannot see the folders of other machines.
    """

    folder: Path
    where: str
    commands: Commands = field(default_factory=Commands.read)
    nodes: dict[str, Node] = field(default_factory=dict)

    def environment(self, name: str, **variables: str) -> dict[str, str]:
        """Return the environment of a shell on a machine."""
        home = self.folder / name
        (home / "ray").mkdir(parents=True, exist_ok=True)
        return fresh_machine(home, home / "ray", **variables)

    def add(self, name: str, num_cpus: int) -> None:
        """Start the head, or let a node with a copy of the token join it."""
        variables = {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{self.where}"}
        env, home = self.environment(name, **variables), self.folder / name
        if not self.nodes:
            self.nodes[name] = start_head(self.commands, env, home, num_cpus, hidden(home))
            return
        self.copy_token(name)
        head = next(iter(self.nodes.values()))
        self.nodes[name] = start_node(self.commands, env, home, num_cpus, head, hidden(home))

    def copy_token(self, name: str) -> None:
        """Copy the token of the cluster to another machine."""
        file = self.folder / name / ".ray" / "auth_token"
        file.parent.mkdir(mode=0o700)
        file.touch(mode=0o600)
        file.write_bytes((self.folder / next(iter(self.nodes)) / ".ray/auth_token").read_bytes())

    def submit(self, output: Path) -> subprocess.Popen[bytes]:
        """Submit the search from a machine that is not a node and has no credentials of S3."""
        env = self.environment("laptop")
        self.copy_token("laptop")
        head = next(iter(self.nodes.values()))
        script = self.commands.submit_to(
            head.dashboard, "-m", "krscale.tune", "jobs/digits.toml", *overrides(*SEARCH)
        )
        with output.open("wb") as file:
            return subprocess.Popen(
                ["bash", "-c", script], env=env, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
            )

    def kept(self, name: str, pattern: str) -> list[Path]:
        """Return the files of the storage that a machine has."""
        return list(self.folder.glob(f"{name}/.cache/krscale/storages/*/{pattern}"))

    def trains(self, *names: str) -> bool:
        """Whether one of the machines has kept the checkpoint of a trial's third epoch.

        By then the storage has an earlier checkpoint, and the driver has a report of it.
        """
        found = [m for n in names for m in self.kept(n, f"{NAME}/unfinished/*/*/*/manifest.json")]
        return any(_num_epochs(manifest.parent) >= 3 for manifest in found)


@pytest.fixture
def machines() -> Iterator[Machines]:
    """A head of two cores and two nodes of one, so that one group of workers is on two nodes."""
    # Not pytest's folder: sockets may not have long paths.
    with s3_server() as where, TemporaryDirectory(prefix="kr", ignore_cleanup_errors=True) as text:
        found = Machines(Path(text), where)
        try:
            for name, num_cpus in {"head": 2, "a": 1, "b": 1}.items():
                found.add(name, num_cpus)
            yield found
        finally:
            for node in reversed(found.nodes.values()):
                node.stop()


def test_a_submitted_search_outlives_its_nodes(
    machines: Machines, drill: Drill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if the job hangs or fails, or a trial is lost, doubled or restarted."""
    report = Report(drill, "a node lost in the middle of a trial of two workers")
    drill.injected("a node that joins in the middle of a search")
    if hidden(tmp_path):
        drill.injected("machines of which none sees a file of another")
    log = tmp_path / "job.log"
    with machines.submit(log) as job:
        try:
            start_seconds, seconds = _change_nodes(machines, job, log)
            job.wait()
        finally:
            job.kill()
    output = log.read_text()
    report.must_hold("the job has ended well", job.returncode == 0)
    assert job.returncode == 0, output
    # On a busy machine a node's start is slow as well: it takes some seconds on a quiet one.
    bound = max(WORK_SECONDS, 4.0 * start_seconds)
    report.must_hold(f"the node that joined was at work within {bound:.0f} s", seconds <= bound)
    drill.measured("start of the node that joins", round(start_seconds, 1), "s")
    drill.measured("from its joining to its first work", round(seconds, 1), "s")

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    storage = Objects.open(f"s3://bucket/runs{query(machines.where)}")
    found = storage.list("")
    curves = [key for key in found if key.endswith("curve.json")]
    report.must_hold(f"one curve in the storage: {curves}", curves == [f"{NAME}/curve.json"])
    storage.download(f"{NAME}/journal.log", tmp_path / "journal.log")
    trials = [trial for ts in trials_of(tmp_path).values() for trial in ts]
    counts = Counter(trial.state.name for trial in trials)
    planned = {TrialState.COMPLETE.name: NUM_TRIALS + NUM_FINALS, TrialState.FAIL.name: 1}
    report.must_hold(f"the planned trials, each once, and one cut short: {counts}",
                     counts == planned)  # fmt: skip
    cut = [trial for trial in trials if was_interrupted(trial)]
    goes_on = len(cut) == 1 and cut[0].intermediate_values
    goes_on = goes_on and "starts from the beginning" not in output
    report.must_hold("the trial that was cut short went on from its checkpoint", goes_on)
    students = [key for key in found if key.startswith(f"{NAME}/students/kr/")]
    kept = sum(key.endswith(".safetensors") for key in students)
    report.must_hold("the final students are in the storage", kept == NUM_FINALS)
    files = (path for path in machines.folder.rglob("*") if path.is_file())
    leaked = [path for path in files if _holds_secret(path)]
    report.must_hold("no file of any machine holds the storage's secret", not leaked)
    report.done()


def _change_nodes(
    machines: Machines, job: subprocess.Popen[bytes], log: Path
) -> tuple[float, float]:
    """Take a node away in the middle of its trial and add one.

    Returns:
        How long the new node took to start, and from then on until it worked, in seconds.
    """
    deadline = time.monotonic() + 600.0
    while not (machines.trains("head") and machines.trains("a", "b")):
        assert job.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    machines.nodes["b"].lose()
    time.sleep(5.0)
    began = time.monotonic()
    machines.add("c", 1)
    joined = time.monotonic()
    while job.poll() is None and not machines.kept("c", "cache/stores/*/manifest.json"):
        time.sleep(0.1)
    return joined - began, time.monotonic() - joined


def _num_epochs(checkpoint: Path) -> int:
    with suppress(UserError, OSError):  # it is being replaced
        return len(json.loads(read_note(checkpoint)))
    return 0


def _holds_secret(path: Path) -> bool:
    with suppress(OSError):
        return SECRET.encode() in path.read_bytes()
    return False
