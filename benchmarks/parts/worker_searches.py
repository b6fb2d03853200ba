"""Searches of trials that workers share, and searches on several nodes."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from krscale.cluster.connect import SETTINGS, connect
from krscale.search.space.check import fitting_space
from krscale.setup.networks import Networks
from krscale.setup.sizes import ladder_sizes
from parts.noop_trial import NoopTrial
from parts.setting import Setting
from parts.watched_search import Watch, watched_search

SEARCH = (
    "data.glyphs.num_train=512",
    "data.glyphs.num_val=64",
    "data.glyphs.num_test=64",
    "teacher.width=16",
    "teacher.num_epochs=1",
    "teacher.allow_poor=true",
    "views.num_views=1",
    "ladder.capacities=['1/16']",
    "train.device=cpu",
    "train.num_epochs=4",
    "search.methods=['plain']",
    "search.early_stopping=none",
    "search.gpus_per_trial=0",
    "tracking.enabled=false",
)
SLEEP_SECONDS = 2.0


class SleepingTrial(NoopTrial):
    """Takes time but no core, to emulate the work of several nodes on one machine."""

    def step(self) -> dict[str, Any]:
        """Sleep, then report."""
        time.sleep(SLEEP_SECONDS)
        return super().step()


def measure_starts(storage: Path, num_trials: int) -> dict[str, Any]:
    """Return the seconds between two consecutive trials, with one worker and with two."""
    found = {}
    for num_workers in (1, 2):
        setting = Setting(
            storage, *SEARCH, f"search.trials_per_size={num_trials}",
            f"train.num_workers={num_workers}", "cluster.address=local", "cluster.num_cpus=2",
        )  # fmt: skip
        connect(setting.experiment.cluster)
        try:
            watch = _watched(storage, setting)
        finally:
            ray.shutdown()
        found[str(num_workers)] = round(statistics.median(watch.gaps), 3)
    return {"trial_start_s": found}


def measure_nodes(storage: Path, num_trials: int, nodes: tuple[int, ...]) -> dict[str, Any]:
    """Return the trials per second on each number of nodes of one core, all on this machine.

    Trials sleep, as the machine has too few cores to act as several. So this measures what the
    search itself costs, and whether it gives every node work.
    """
    found: dict[str, float] = {}
    for number in nodes:
        with _cluster(number) as address:
            setting = Setting(
                storage, *SEARCH, f"search.trials_per_size={num_trials}",
                f"cluster.address={address}",
                "train.num_epochs=1",  # the number that such a trial reports
            )  # fmt: skip
            connect(setting.experiment.cluster)
            try:
                watch = _watched(storage, setting, SleepingTrial)
            finally:
                ray.shutdown()
        begun, ended = min(watch.begun.values()), max(
            watch.begun[name] + length for name, length in watch.lengths.items()
        )  # fmt: skip
        found[str(number)] = round(len(watch.lengths) / (ended - begun), 3)
    one = found[str(nodes[0])] / nodes[0]
    return {
        "trials_per_s": found,
        "over_one_node": {number: round(rate / one, 2) for number, rate in found.items()},
        "seconds_of_a_trial": SLEEP_SECONDS,
    }


def _watched(storage: Path, setting: Setting, trainable: type | None = None) -> Watch:
    folder = storage / "search"
    shutil.rmtree(folder, ignore_errors=True)
    experiment = setting.experiment.model_copy(update={"name": "search"})
    networks = Networks.resolve(experiment, setting.assets.dataset)
    sizes, space = ladder_sizes(networks), fitting_space(networks)
    return watched_search(folder, experiment, setting.prepared, sizes, space, trainable)


@contextmanager
def _cluster(num_nodes: int) -> Iterator[str]:
    """Run raylets of one core each on this machine; yield their address."""
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ.update(SETTINGS)
    os.environ.pop("RAY_ADDRESS", None)
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(num_nodes - 1):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)
