"""A search on a cluster of two nodes: trials too large for either, and the loss of a node."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import ray
from drilling import Drill
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.cluster_utils import Cluster
from running import ROOT, environment, give_own_token, overrides

from krscale.cluster.connect import SETTINGS, connect, require
from krscale.config import ClusterConfig
from krscale.errors import UserError
from krscale.search.studies.retries import was_interrupted

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

NUM_TRIALS, NUM_FINALS = 4, 1
SEARCH = (
    "teacher.width=8",
    "teacher.num_epochs=1",
    "views.num_views=2",
    "ladder.capacities=['1/4']",
    "train.num_epochs=16",
    "search.methods=['plain']",
    f"search.trials_per_size={NUM_TRIALS}",
    f"search.num_final_seeds={NUM_FINALS}",
    "search.early_stopping=none",
    "search.checkpoint_seconds=0",
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one core, as two raylets on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**SETTINGS, "PYTHONPATH": environment()["PYTHONPATH"]}.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        give_own_token(patch)  # whatever token Ray read in an earlier test
        # Not pytest's folder: the paths of sockets must be short.
        with TemporaryDirectory(prefix="kr", ignore_cleanup_errors=True) as folder:
            head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": folder}
            cluster = Cluster(initialize_head=True, head_node_args=head)
            try:
                cluster.add_node(num_cpus=1)
                cluster.wait_for_nodes()
                yield cluster
            finally:
                cluster.shutdown()


def start(cluster: Cluster, storage: Path, *settings: str) -> subprocess.Popen[str]:
    where = f"storage_path={storage}", "name=lost", f"cluster.address={cluster.address}", *settings
    return subprocess.Popen(
        [sys.executable, "-m", "krscale.tune", "--quiet", *overrides(*SEARCH, *where)],
        cwd=ROOT, env=environment(), text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def trials_of(journal: Path) -> dict[str, list[FrozenTrial]]:
    if not journal.exists():
        return {}
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return {
        study.study_name: storage.get_all_trials(study._study_id)
        for study in storage.get_all_studies()
    }


@pytest.mark.drill  # the suite looks at groups on one node instead (test_trials.py)
def test_a_trial_that_no_node_can_hold_is_refused(cluster: Cluster, drill: Drill) -> None:
    """The two nodes have two cores together, but no single trial can use both."""
    drill.injected("trials of 2 CPU, for two nodes of 1 CPU", kind="bad input")
    drill.must_hold("one line names the setting and what the nodes have")
    config = ClusterConfig(address=cluster.address, wait_seconds=1.0)
    connect(config)
    try:
        require({"CPU": 1.0}, config, "search.cpus_per_trial", 2)
        with pytest.raises(UserError) as refused:
            require({"CPU": 2.0}, config, "search.cpus_per_trial")
    finally:
        ray.shutdown()
    assert str(refused.value) == (
        "search.cpus_per_trial: this needs 2 CPU on one node; the cluster has 2 nodes of 1 CPU."
    )
    drill.held(str(refused.value))


@pytest.mark.drill
def test_what_a_lost_node_was_training_goes_on_elsewhere(
    cluster: Cluster, tmp_path: Path, drill: Drill
) -> None:
    """Fails if the search hangs, ends with an error, or loses or doubles a trial."""
    drill.injected("a node of a cluster taken away while its trial trains")
    drill.must_hold("every trial is complete once; the trial on the lost node, and no other, moved")
    journal = tmp_path / "lost" / "journal.log"
    process = start(cluster, tmp_path)
    try:
        while process.poll() is None and _num_training(journal) < 2:
            time.sleep(0.5)
        assert process.poll() is None, process.stderr and process.stderr.read()
        (lost,) = cluster.worker_nodes
        cluster.remove_node(lost, allow_graceful=False)
        _, errors = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0, errors
    studies = trials_of(journal)
    assert sorted(map(len, map(_ended_well, studies.values()))) == [NUM_FINALS, NUM_TRIALS]
    interrupted = [t for found in studies.values() for t in found if was_interrupted(t)]
    assert len(interrupted) == 1, "the trial on the lost node, and no other"
    states = Counter(t.state for found in studies.values() for t in found)
    assert states == {TrialState.COMPLETE: NUM_TRIALS + NUM_FINALS, TrialState.FAIL: 1}
    drill.held(f"{NUM_TRIALS + NUM_FINALS} trials complete, one of them went on on another node")


@pytest.mark.drill
def test_a_group_over_two_nodes_waits_for_one_that_is_lost(
    cluster: Cluster, tmp_path: Path, drill: Drill
) -> None:
    """The previous drill removes the second node; each of the two has room for one worker."""
    drill.injected("a node of a cluster taken away while a trial of two workers trains on both")
    drill.must_hold("the trial goes on when a node has joined; every trial is complete once")
    if not cluster.worker_nodes:
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    journal = tmp_path / "lost" / "journal.log"
    process = start(cluster, tmp_path, "train.num_workers=2")
    try:
        while process.poll() is None and _num_training(journal) < 1:
            time.sleep(0.5)
        assert process.poll() is None, process.stderr and process.stderr.read()
        (lost,) = cluster.worker_nodes
        cluster.remove_node(lost, allow_graceful=False)
        time.sleep(10.0)
        assert process.poll() is None, "it waits"
        cluster.add_node(num_cpus=1)
        _, errors = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0, errors
    studies = trials_of(journal)
    assert sorted(map(len, map(_ended_well, studies.values()))) == [NUM_FINALS, NUM_TRIALS]
    interrupted = [t for found in studies.values() for t in found if was_interrupted(t)]
    assert len(interrupted) == 1
    drill.held(
        f"{NUM_TRIALS + NUM_FINALS} trials complete, one of them with a worker on a new node"
    )


@pytest.mark.drill
def test_a_group_that_may_be_smaller_goes_on_without_a_node(
    cluster: Cluster, tmp_path: Path, drill: Drill
) -> None:
    """The group uses two nodes of one core, then one; no node joins."""
    drill.injected("a node taken away while a trial of one to two workers trains on two nodes")
    drill.must_hold("the trial goes on with one worker; every trial is complete once")
    if not cluster.worker_nodes:
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    journal = tmp_path / "lost" / "journal.log"
    process = start(cluster, tmp_path, "train.num_workers=1", "train.max_workers=2")
    try:
        while process.poll() is None and _num_training(journal) < 1:
            time.sleep(0.5)
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert sum(map(len, trials_of(journal).values())) == 1, "one trial has all the workers"
        (lost,) = cluster.worker_nodes
        cluster.remove_node(lost, allow_graceful=False)
        _, errors = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0, errors
    studies = trials_of(journal)
    assert sorted(map(len, map(_ended_well, studies.values()))) == [NUM_FINALS, NUM_TRIALS]
    interrupted = [t for found in studies.values() for t in found if was_interrupted(t)]
    causes = Counter(trial.user_attrs["interrupted"] for trial in interrupted)
    assert causes["its worker was lost"] == 1, causes
    assert causes.total() <= 2, "and once, while Ray did not miss the node yet, for its workers"
    drill.held(f"{NUM_TRIALS + NUM_FINALS} trials complete on what was left; cut short: {causes}")


def _num_training(journal: Path) -> int:
    trials = [trial for found in trials_of(journal).values() for trial in found]
    training = [t for t in trials if t.state is TrialState.RUNNING and t.intermediate_values]
    return len(training)


def _ended_well(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state is TrialState.COMPLETE]
