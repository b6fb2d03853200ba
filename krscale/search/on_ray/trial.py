"""The code inside a Tune actor: it trains one student after another, on assets opened once.

The actor is reused, so a trial needs neither a process start nor an import of torch. It trains on
memory-mapped data and the memory-mapped store; the teacher's network is never loaded here. If
`train.num_workers` is 2 or more, the actor is the first worker of a group (`group.py`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from krscale.cluster.versions import refuse_other_versions
from krscale.config import Experiment
from krscale.digests import digest_path
from krscale.metrics import VAL_ACCURACY
from krscale.models.given import Builder, keep
from krscale.runs.folder import student_path
from krscale.search.on_ray.group import Group, start_group
from krscale.search.on_ray.rank import build_trial, use_threads
from krscale.search.studies.checkpoints import History, Keeper, checkpoint_path, go_on, sign_path
from krscale.search.studies.signs import Signs
from krscale.search.studies.trial_spec import FinalKey
from krscale.setup.build import Assets
from krscale.setup.prepare import Prepared
from krscale.stalls import seconds_between
from krscale.storage.trial_files import drop_checkpoint, send_file
from krscale.training.checkpoint import save_weights
from krscale.training.loop import Training

REPORT_SECONDS = 0.5
"""Shorter epochs are reported together, because a report costs the driver milliseconds."""


class StudentTrial(tune.Trainable):
    """One student's training as a Tune class trainable; the actor is reused across trials."""

    training: Training
    assets: Assets
    group: Group
    keeper: Keeper
    history: History
    recalled: History
    note: str
    """A note for the user, sent with the next result."""
    read_and_written: list[Path]
    """Checkpoints of the trial: its own, and the one it continues from."""

    def setup(  # type: ignore[override]
        self,
        config: dict[str, Any],
        experiment: Experiment,
        prepared: Prepared,
        given: Mapping[str, Builder] | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        """Open shared assets and start the group, once per actor; then start the first trial."""
        refuse_other_versions(versions or {})
        keep(given or {})
        use_threads(experiment.search.cpus_per_trial)
        self.experiment = experiment
        self.group = start_group(experiment, prepared, given or {})
        self.assets = Assets.open(prepared)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start the next trial in the same process."""
        for path in self.read_and_written:  # one of each trial would fill the disk of a node
            drop_checkpoint(path)
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Run epochs for at least `REPORT_SECONDS`, or up to the next early-stopping milestone.

        A trial that continues from a checkpoint first reports its epochs, all at once.
        """
        if self.recalled:
            history, self.recalled = self.recalled, []
            return self._result(history)
        started = time.perf_counter()
        history = []
        while not self.training.finished:
            history.append(self.group.together("run_epoch", own=self.training.run_epoch))
            if self.training.epoch in self.milestones:
                break
            if time.perf_counter() - started >= REPORT_SECONDS:
                break
        if self.training.finished and self.is_final:
            self._keep_student()
        self.history += history
        self.keeper.keep(self.training, self.history)
        return self._result(history)

    def _result(self, history: History) -> dict[str, Any]:
        note, self.note = self.note, ""
        return {
            "history": history,
            "note": note,
            VAL_ACCURACY: history[-1][VAL_ACCURACY],
            "seconds_in_steps": self.training.seconds_in_steps,
            tune.result.DONE: self.training.finished,
        }

    def cleanup(self) -> None:
        """End the group; Tune calls this if it has no more trials for this actor."""
        self.group.end()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Raise an error; Tune would call this to pause a trial, which krscale never does."""
        raise NotImplementedError("krscale keeps its own checkpoints")

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Raise an error, as in `save_checkpoint`."""
        raise NotImplementedError("krscale keeps its own checkpoints")

    def _begin(self, config: dict[str, Any]) -> None:
        search, path = self.experiment.search, self.experiment.run_path
        between = seconds_between(search.stall_seconds)
        signs = Signs(sign_path(path, str(config["name"])), between)
        self.trial_seed = int(config["seed"])
        self.method, self.capacity = str(config["method"]), str(config["capacity"])
        self.is_final = config["kind"] == FinalKey.kind
        self.milestones = frozenset(config["milestones"])
        own = partial(build_trial, self.experiment, self.assets, config, self.group.workers)
        self.training = self.group.together("build", config, own=own)
        self.history, self.note = [], ""
        self.read_and_written = [checkpoint_path(path, str(config["name"]))]
        if config["continues"]:
            before = checkpoint_path(path, config["continues"])
            self.read_and_written.append(before)
            self.history, problem = go_on(self.training, before)
            if problem:
                self.training = self.group.together("build", config, own=own)
                self.note = (
                    f"{config['name']} cannot go on from the checkpoint of {config['continues']} "
                    f"and starts from the beginning: {problem}"
                )
            else:
                self.group.together("load", self.training.state_dict(), own=_nothing)
        self.training.on_step = signs.give
        self.recalled = list(self.history)
        self.keeper = Keeper(self.read_and_written[0], search.checkpoint_seconds)

    def _keep_student(self) -> None:
        run_path = self.experiment.run_path
        path = student_path(run_path, self.method, self.capacity, self.trial_seed)
        save_weights(path, self.training.student)
        send_file(path, digest_path(path))


def _nothing() -> None:
    """Do nothing: the first worker has done its part before it calls the others."""
