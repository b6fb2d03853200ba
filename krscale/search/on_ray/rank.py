"""The work of each worker of a trial, whether it is the only one or one of a group."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

from krscale.cluster.meeting import Meeting
from krscale.cluster.versions import refuse_other_versions
from krscale.config import Experiment
from krscale.models.given import Builder, keep
from krscale.parallel import Workers
from krscale.setup.build import Assets, build_training, trial_experiment
from krscale.setup.prepare import Prepared
from krscale.training.loop import Training


def use_threads(cpus: float) -> None:
    """Let torch use as many threads as the worker has cores; one if it shares a core."""
    torch.set_num_threads(max(1, int(cpus)))
    # torch's second pool, otherwise as large as the machine, is reduced as well. This is possible
    # only before the first work, which is now in a fresh actor.
    with suppress(RuntimeError):
        torch.set_num_interop_threads(1)


def build_trial(
    experiment: Experiment, assets: Assets, config: Mapping[str, Any], workers: Workers
) -> Training:
    """Build the training of a trial for one of its workers.

    Args:
        experiment: The search.
        assets: The assets that the worker keeps open.
        config: The trial, as the searcher suggested it (`searcher.py`).
        workers: The worker's place in the group.
    """
    values = {**config["values"], "distill.capacity": str(config["capacity"])}
    own = trial_experiment(experiment, str(config["method"]), values, int(config["seed"]))
    return build_training(own, assets, int(config["width"]), workers)


class Rank:
    """A worker of a group other than the first, which calls these methods one after another.

    The first worker does the same at the same time in its own process. Between two calls this
    worker waits, so a trial can be stopped after any of them.

    Args:
        experiment: The search.
        prepared: Data, teacher and store, on storage that all workers can read.
        builders: Networks that were given as objects.
        versions: Versions of the first worker (`own_versions`), which are those of the command.
    """

    training: Training
    workers: Workers

    def __init__(
        self,
        experiment: Experiment,
        prepared: Prepared,
        builders: Mapping[str, Builder],
        versions: Mapping[str, str],
    ) -> None:
        refuse_other_versions(versions)
        keep(builders)
        use_threads(experiment.search.cpus_per_trial)
        self.experiment, self.assets = experiment, Assets.open(prepared)

    def join(self, meeting: Meeting, rank: int) -> None:
        """Join the other workers; return when all have joined."""
        self.workers = meeting.join(rank)

    def build(self, config: Mapping[str, Any]) -> None:
        """Build the training of a trial; all workers do so at the same time."""
        self.training = build_trial(self.experiment, self.assets, config, self.workers)

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of the first worker, which has read the checkpoint.

        On a machine without that worker's disk, the file may be elsewhere, older or missing.
        """
        self.training.load_state_dict(state)

    def run_epoch(self) -> None:
        """Train the next epoch; the first worker returns its metrics."""
        self.training.run_epoch()
