"""Two nodes that share nothing but an S3 server, one of which is lost; then a third machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from drilling import Drill
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.cluster_utils import Cluster
from running import ROOT, command, environment, give_own_token, overrides
from s3_server import CREDENTIALS, SECRET, s3_server

from krscale.cluster.connect import SETTINGS
from krscale.search.studies.retries import was_interrupted
from krscale.storage.address import CACHE_VARIABLE
from krscale.storage.objects import Objects

pytestmark = [pytest.mark.drill, pytest.mark.cluster, pytest.mark.timeout(1200)]

NUM_TRIALS, NUM_FINALS = 4, 2
STORAGE = "s3://bucket/runs"
SEARCH = (
    f"storage_path={STORAGE}",
    "name=apart",
    "teacher.width=8",
    "teacher.num_epochs=1",
    "teacher.allow_poor=true",
    "views.num_views=2",
    "ladder.capacities=['1/4']",
    "train.num_epochs=16",
    "search.methods=['kr']",
    f"search.trials_per_size={NUM_TRIALS}",
    f"search.num_final_seeds={NUM_FINALS}",
    "search.early_stopping=none",
    "search.checkpoint_seconds=0",
    "tracking.enabled=false",
)


@dataclass
class Apart:
    """Machines of one test: a cluster of two nodes, and an S3 server that both reach."""

    cluster: Cluster
    folder: Path
    variables: dict[str, str]

    def cache(self, name: str) -> Path:
        """Folder in which a machine caches the storage."""
        return self.folder / name / "cache"

    def run(self, name: str) -> Path:
        """The run's folder on a machine."""
        (found,) = self.cache(name).glob("storages/*/apart")
        return found

    def search(self, name: str) -> subprocess.Popen[str]:
        """Start the search with its driver on a machine."""
        where = overrides(*SEARCH, f"cluster.address={self.cluster.address}")
        env = environment(**self.variables, **{CACHE_VARIABLE: str(self.cache(name))})
        return subprocess.Popen(
            [sys.executable, "-m", "krscale.tune", "--quiet", *where],
            cwd=ROOT, env=env, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip


@pytest.fixture
def apart() -> Iterator[Apart]:
    """Two nodes of one core, each with a home, a temporary folder and a cache of its own."""
    with s3_server() as where, pytest.MonkeyPatch.context() as patch:
        variables = {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{where}"}
        for name, value in {**SETTINGS, "PYTHONPATH": environment()["PYTHONPATH"]}.items():
            patch.setenv(name, value)
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        # Not pytest's folder: sockets may not have long paths.
        with TemporaryDirectory(prefix="kr", ignore_cleanup_errors=True) as text:
            folder = Path(text)
            _move_to(patch, folder, "one")
            give_own_token(patch)  # another test may have made Ray read another token
            head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": f"{folder}/one/ray"}
            cluster = Cluster(initialize_head=True, head_node_args=head)
            try:
                _move_to(patch, folder, "two")
                cluster.add_node(num_cpus=1)
                cluster.wait_for_nodes()
                yield Apart(cluster, folder, variables)
            finally:
                cluster.shutdown()


def _move_to(patch: pytest.MonkeyPatch, folder: Path, name: str) -> None:
    home = folder / name
    home.mkdir()
    patch.setenv("HOME", str(home))
    patch.setenv(CACHE_VARIABLE, str(home / "cache"))


def test_a_search_whose_nodes_share_no_disk(apart: Apart, drill: Drill) -> None:
    """Fails if the search hangs or ends with an error, or a trial is lost, doubled or restarted."""
    drill.injected("nodes that share nothing but an S3 server")
    drill.injected("a node taken away while its trial trains")
    drill.must_hold("every trial is complete once, and the interrupted one goes on elsewhere")
    drill.must_hold("another machine takes the finished run from the storage and trains nothing")
    drill.must_hold("the run has one driver at a time, and none at the end")
    drill.must_hold("no credential is in a log, a record or an object")
    process = apart.search("one")
    try:
        while process.poll() is None and not _has_checkpoint(apart):
            time.sleep(0.5)
        assert process.poll() is None, process.stderr and process.stderr.read()
        (lost,) = apart.cluster.worker_nodes
        apart.cluster.remove_node(lost, allow_graceful=False)
        _, errors = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0, errors
    trials = _trials(apart.run("one") / "journal.log")
    assert Counter(t.state for t in trials) == {
        TrialState.COMPLETE: NUM_TRIALS + NUM_FINALS,
        TrialState.FAIL: 1,
    }
    (interrupted,) = [trial for trial in trials if was_interrupted(trial)]
    assert "starts from the beginning" not in errors
    assert interrupted.intermediate_values
    assert list(apart.cache("two").glob("storages/*/cache/stores/*/manifest.json"))
    drill.held(f"{NUM_TRIALS + NUM_FINALS} trials complete; one went on from its checkpoint in S3")

    again = command(
        "tune",
        ["--quiet", *overrides(*SEARCH, "cluster.address=local", "cluster.num_cpus=1")],
        timeout=600.0,
        **apart.variables,
        **{CACHE_VARIABLE: str(apart.cache("three"))},
    )
    assert again.returncode == 0, again.stderr
    one, three = (apart.run(name) for name in ("one", "three"))
    # Each start adds a line to the journal.
    assert (three / "journal.log").read_bytes().startswith((one / "journal.log").read_bytes())
    assert len(_trials(three / "journal.log")) == len(trials)
    assert (three / "students").is_dir()
    drill.held("the journal goes on to the byte, without a trial more")

    start = json.loads(Objects.open(STORAGE).read("apart/.driver.json") or b"")
    assert (start["number"], start["ended"]) == (2, True)
    drill.held("two drivers, one after the other, and the lock of the run is free")

    found = [path for path in apart.folder.rglob("*") if path.is_file() and _holds_secret(path)]
    assert not found
    drill.held("none of the files of three machines and Ray's logs holds one")


def test_one_training_on_nodes_that_share_no_disk(apart: Apart, drill: Drill) -> None:
    """Fails if a worker does not find data and store, or the driver the last checkpoint."""
    drill.injected("one training on two nodes that share nothing but an S3 server")
    drill.must_hold("the student is trained, tested and kept, and its checkpoints are in S3")
    settings = (*SEARCH[:8], "train.num_workers=2", "train.num_epochs=2", "tracking.enabled=false")
    settings = tuple(s for s in settings if not s.startswith("train.num_epochs=16"))
    done = command(
        "distill",
        ["--quiet", *overrides(*settings, f"cluster.address={apart.cluster.address}")],
        timeout=600.0,
        **apart.variables,
        **{CACHE_VARIABLE: str(apart.cache("one"))},
    )
    assert done.returncode == 0, done.stderr
    (run,) = apart.cache("one").glob("storages/*/apart-*")
    assert (run / "student.safetensors").is_file()
    assert not (run / "train").exists()
    assert list(apart.cache("two").glob("storages/*/cache/stores/*/manifest.json"))
    drill.held("student and result are in the run folder, checkpoints in the bucket alone")


def _has_checkpoint(apart: Apart) -> bool:
    """Whether both nodes train, and the second has sent a checkpoint."""
    kept = apart.cache("two").glob("storages/*/apart/unfinished/*/*/*/manifest.json")
    other = apart.cache("one").glob("storages/*/apart/unfinished/*/*/*/manifest.json")
    return any(kept) and any(other)


def _trials(journal: Path) -> list[FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return [
        trial
        for study in storage.get_all_studies()
        for trial in storage.get_all_trials(study._study_id)
    ]


def _holds_secret(path: Path) -> bool:
    try:
        return SECRET.encode() in path.read_bytes()
    except OSError:
        return False
