"""One training over many workers: the only importer of ray.train.

Every worker builds the same training for its own rank; gradients, batch-norm statistics and
metrics are those of the global batch, so that a step is the same on one worker and on many but for
rounding, which grows: weights were up to 0.039 apart after several epochs. After every epoch all
workers report and the first one's checkpoint is kept; when a worker dies, Ray starts the group
again from there.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray
import torch
from ray import train
from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue

from krscale.cluster.connect import require
from krscale.cluster.kept_training import STATE, find_kept
from krscale.cluster.lost_worker import lost_worker
from krscale.cluster.rendezvous import OneAddress
from krscale.cluster.worker_reports import EpochReporter, OnEpoch, ReportReader, StepReporter
from krscale.config import Experiment
from krscale.digests import copy_checked
from krscale.errors import KrscaleError, NoGradientError, NonFiniteError, UserError
from krscale.parallel import Workers, sum_over_workers
from krscale.setup.build import Assets, build_training
from krscale.setup.prepare import Prepared
from krscale.stalls import StallWatch
from krscale.storage.objects import place_for_ray
from krscale.storage.trial_files import bring_all
from krscale.storage_errors import storage_error
from krscale.training.checkpoint import (
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from krscale.training.loop import Training, fit

STUDENT_FILE = "student.safetensors"
TRAIN = "train"
"""Folder of Ray Train in the run's; a name of its own would be another training."""
MAX_FAILURES = 3  # restarts of the worker group before the run is given up

_UNUSED = (
    "num_workers: the network has weights that take no part in what it returns, and torch's "
    "DistributedDataParallel trains none such. Set it to 1, or leave those weights out."
)


def train_on_workers(
    experiment: Experiment,
    prepared: Prepared,
    width: int,
    on_epoch: OnEpoch,
    note: Callable[[str], None],
) -> dict[str, float]:
    """Train one student with Ray Train.

    The run folder keeps its weights, `student.safetensors`. An unfinished training in it is
    continued from its last epoch.

    Args:
        experiment: All settings; `train.num_workers` workers are used.
        prepared: Data, teacher and store, on storage that all workers see.
        width: The student's capacity dial.
        on_epoch: As for `fit_on_workers`.
        note: As for `fit_on_workers`.

    Returns:
        The metrics of the last epoch, over all workers.

    Raises:
        UserError: As `fit_on_workers`.
    """
    build = partial(_student, experiment.without_credentials(), prepared, width)
    weights = experiment.run_path / STUDENT_FILE
    return fit_on_workers(build, experiment, "train", weights, on_epoch, note)


def _student(experiment: Experiment, prepared: Prepared, width: int, workers: Workers) -> Training:
    return build_training(experiment, Assets.open(prepared), width, workers)


def fit_on_workers(
    build: Callable[[Workers], Training],
    experiment: Experiment,
    section: Literal["train", "teacher"],
    weights: Path,
    on_epoch: OnEpoch,
    note: Callable[[str], None],
) -> dict[str, float]:
    """Train one network with Ray Train; an unfinished training goes on from its last epoch.

    Args:
        build: Called by each worker; picklable.
        experiment: The cluster and the device.
        section: Whose `num_workers` are used.
        weights: File of what was trained; Ray Train has a folder beside it.
        on_epoch: Called on the driver with the metrics of every epoch; again with those of the
            epoch that an unfinished training goes on from.
        note: Prints a line for the user: that a training which hung was ended, or that Ray Train's
            record of an unfinished one is lost.

    Returns:
        The metrics of the last epoch, over all workers.

    Raises:
        UserError: If the cluster can never give so many workers, or what one of them found cannot
            be trained: a loss that is not finite, a setting that does not fit; if workers are lost,
            or make no progress for `search.stall_seconds`, more than `MAX_FAILURES` times.
    """
    folder, num_workers = weights.parent, getattr(experiment, section).num_workers
    bring_all(folder / TRAIN)
    kept = find_kept(folder / TRAIN, "student" if section == "train" else section, note)
    if kept.metrics:
        on_epoch(kept.metrics)
    each = require_workers(experiment, section)
    queue = Queue(actor_options={"num_cpus": 0})  # workers may take every core there is
    stall_seconds = experiment.search.stall_seconds
    reader = ReportReader(queue, on_epoch, note, StallWatch(stall_seconds))
    reader.start()
    config = {
        "build": build,
        "weights": weights.name,
        "section": section,
        "queue": queue,
        "stall_seconds": stall_seconds,
        "go_on_from": str(kept.checkpoint or ""),
    }
    try:
        result = _trainer(config, folder, num_workers, each).fit()
    except TrainingFailedError as error:
        found = _user_error(error, reader.why_ended)
        if found is None:
            raise
        raise found from None
    finally:
        queue.put(None)
        reader.join()
        queue.shutdown()
    metrics = _keep_weights(result, weights)
    kept.remove_unrecorded()
    return metrics


def require_workers(
    experiment: Experiment, section: Literal["train", "teacher"]
) -> dict[str, float]:
    """Wait until the connected cluster has the workers of one training, free or not.

    Args:
        experiment: The cluster and the device.
        section: Whose `num_workers` are meant.

    Returns:
        What each of them takes of the cluster.

    Raises:
        UserError: If it stays too small; says what its nodes have.
    """
    num_workers = getattr(experiment, section).num_workers
    use_gpu = _uses_gpu(experiment.train.device, num_workers)
    each = {"CPU": 1.0, **({"GPU": 1.0} if use_gpu else {})}
    require(each, experiment.cluster, f"{section}.num_workers", num_workers)
    return each


def _trainer(
    config: dict[str, Any], folder: Path, num_workers: int, each: dict[str, float]
) -> TorchTrainer:
    """Return Ray Train, which keeps its checkpoints in `folder`.

    Args:
        config: What `_worker` takes.
        folder: Of the run, or of the teacher.
        num_workers: To start.
        each: What each of them takes of the cluster.
    """
    path, filesystem = place_for_ray(folder)
    use_gpu = "GPU" in each
    return _Trainer(
        _worker,  # type: ignore[arg-type]  # Ray's annotation does not know of return values yet
        train_loop_config=config,
        torch_config=OneAddress(backend="nccl" if use_gpu else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=each
        ),
        run_config=train.RunConfig(
            name=TRAIN,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=train.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=train.CheckpointConfig(num_to_keep=2),
            callbacks=[EpochReporter(config["queue"])],  # type: ignore[list-item]
        ),
    )


def _keep_weights(result: train.Result, weights: Path) -> dict[str, float]:
    """Copy what was trained out of the last checkpoint; return the metrics of that epoch."""
    broke: tuple[str, str] | None = getattr(result, "return_value", None)
    if broke is not None:
        kind, text = broke
        raise (NonFiniteError if kind == NonFiniteError.__name__ else UserError)(text)
    if result.checkpoint is None or result.metrics is None:
        raise KrscaleError("Ray Train ended without a checkpoint")
    with result.checkpoint.as_directory() as checkpoint:
        copy_checked(Path(checkpoint) / weights.name, weights)
    return dict(result.metrics)


class _Trainer(TorchTrainer):
    """Leaves Ctrl-C to the command, which cleans up; Ray would end the process by itself."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Register none."""


def _user_error(error: TrainingFailedError, why_ended: str = "") -> UserError | None:
    """Return what made workers fail, if it is not a defect: the user's mistake, storage, a loss.

    Args:
        error: What Ray raised.
        why_ended: Why they were ended from here (`ReportReader.why_ended`).
    """
    failed = f"the training failed {MAX_FAILURES + 1} times"
    if why_ended:
        return UserError(f"{failed}; the last time {why_ended}.")
    failures = getattr(error, "worker_failures", {}).values()
    bare = [getattr(failure, "_base_exc", failure) for failure in failures]
    bare = [getattr(failure, "health_check_failure", failure) for failure in bare]
    work = f"{failed}, and last with a worker lost"
    found: list[UserError | None] = [each for each in bare if isinstance(each, UserError)]
    found += [storage_error(each) for each in bare]
    found += [lost_worker(each, work) for each in bare]
    return next(filter(None, found), None)


def _worker(config: dict[str, Any]) -> tuple[str, str] | None:
    """The training of one rank, in a Ray Train worker.

    Returns:
        What broke, by the name of its error and in words, if a loss was not finite, no rank
        could read the checkpoint or the network cannot be shared: all ranks find it at the same
        point and end together. As an exception it would make Ray start the group again, only to
        find the same.
    """
    torch.set_num_threads(1)
    workers = Workers.from_environment()
    send = config["queue"].actor.put.remote
    reporter = StepReporter(send, workers.rank, config["stall_seconds"])
    training: Training = config["build"](workers)
    latest = train.get_checkpoint()
    if latest is None and config["go_on_from"]:
        latest = train.Checkpoint.from_directory(config["go_on_from"])
    if latest is not None and (problem := _go_on(training, latest)):
        return UserError.__name__, problem
    training.on_step = reporter.step

    def report(metrics: dict[str, float]) -> None:
        if workers.rank != 0:
            train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as temporary:
            note = json.dumps(metrics)  # for a driver that ends before it has them
            save_checkpoint(Path(temporary) / STATE, training.state_dict(), note)
            if training.finished:
                save_weights(Path(temporary) / config["weights"], training.student)
            train.report(metrics, checkpoint=train.Checkpoint.from_directory(temporary))

    try:
        fit(training, report)
    except NonFiniteError as error:
        return NonFiniteError.__name__, str(error)
    except NoGradientError as error:
        return UserError.__name__, str(error)
    except RuntimeError as error:
        if "finished reduction in the prior iteration" not in str(error):
            raise
        return UserError.__name__, f"{config['section']}.{_UNUSED}"
    return None


def _go_on(training: Training, checkpoint: train.Checkpoint) -> str:
    """Load a checkpoint on this rank; return what is wrong with it if no rank can read it.

    Raises:
        UserError: If other ranks can.
    """
    problem: UserError | None = None
    with checkpoint.as_directory() as path:
        try:
            training.load_state_dict(load_checkpoint(Path(path) / STATE))
        except UserError as error:
            problem = error
    workers = training.workers
    failed = torch.tensor(float(problem is not None), device=workers.device)
    if sum_over_workers(failed).item() == workers.world_size:
        return str(problem)
    if problem is not None:
        raise problem
    return ""


def _uses_gpu(device: str, num_workers: int) -> bool:
    if device == "auto":
        gpus = ray.cluster_resources().get("GPU", 0.0)  # type: ignore[no-untyped-call]
        return bool(gpus >= num_workers)
    return device == "cuda"
