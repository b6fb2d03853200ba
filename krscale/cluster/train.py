"""One training on several workers; the only module that imports ray.train.

Every worker builds the same training for its own rank. Gradients, batch-norm statistics and metrics
are those of the global batch, so a step is the same on one worker and on many except for rounding.
Rounding differences grow: weights were up to 0.039 apart after several epochs. After every epoch
all workers report, and the first worker's checkpoint is kept. If a worker dies, Ray starts the
group again from that checkpoint.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray
import torch
import torch.distributed as dist
from ray import train
from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer

from krscale.cluster.connect import require
from krscale.cluster.kept_training import STATE, find_kept
from krscale.cluster.lost_worker import lost_worker
from krscale.cluster.rendezvous import OneAddress
from krscale.cluster.versions import own_versions, refuse_other_versions
from krscale.cluster.worker_reports import (
    EpochReporter,
    OnEpoch,
    ReportReader,
    StepReporter,
    report_queue,
)
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
"""Ray Train's folder within the run folder; another name would be another training."""
MAX_FAILURES = 3  # restarts of the worker group before the run is given up

MEET_SECONDS = 10.0
"""How long a worker waits for the others to find the same error."""

_UNUSED = (
    "num_workers: the network has weights that take no part in what it returns, in all steps or in "
    "some, and torch's DistributedDataParallel trains none such. Set it to 1, or leave those "
    "weights out."
)


def train_on_workers(
    experiment: Experiment,
    prepared: Prepared,
    width: int,
    on_epoch: OnEpoch,
    note: Callable[[str], None],
) -> dict[str, float]:
    """Train one student with Ray Train.

    The weights are kept in the run folder as `student.safetensors`. An unfinished training in that
    folder continues after its last epoch.

    Args:
        experiment: All settings; `train.num_workers` is the number of workers.
        prepared: Data, teacher and store, on storage that all workers can read.
        width: The student's capacity dial.
        on_epoch: As for `fit_on_workers`.
        note: As for `fit_on_workers`.

    Returns:
        The metrics of the last epoch, over all workers.

    Raises:
        UserError: As for `fit_on_workers`.
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
    """Train one network with Ray Train; an unfinished training continues after its last epoch.

    Args:
        build: Called by each worker; picklable.
        experiment: The cluster and the device.
        section: The section whose `num_workers` is used.
        weights: File for the trained weights; Ray Train's folder is beside it.
        on_epoch: Called on the driver with the metrics of every epoch, including those of the epoch
            that an unfinished training continues after.
        note: Prints a line for the user if a stalled training was ended, or if Ray Train's record
            of an unfinished training cannot be read.

    Returns:
        The metrics of the last epoch, over all workers.

    Raises:
        UserError: If the cluster can never provide so many workers; if a worker finds that it
            cannot train (a loss that is not finite, a setting that does not fit); or if workers are
            lost, or make no progress for `search.stall_seconds`, more than `MAX_FAILURES` times.
        Exception: Any exception of `on_epoch`, raised once the weights are kept.
    """
    folder, num_workers = weights.parent, getattr(experiment, section).num_workers
    bring_all(folder / TRAIN)
    kept = find_kept(folder / TRAIN, "student" if section == "train" else section, note)
    if kept.metrics:
        on_epoch(kept.metrics)
    each = require_workers(experiment, section)
    queue = report_queue()
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
        "versions": own_versions(),
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
    if reader.error is not None:
        raise reader.error
    return metrics


def require_workers(
    experiment: Experiment, section: Literal["train", "teacher"]
) -> dict[str, float]:
    """Wait until the connected cluster has the workers of one training, free or not.

    Args:
        experiment: The cluster and the device.
        section: The section whose `num_workers` counts.

    Returns:
        The resources that each worker reserves.

    Raises:
        UserError: If the cluster stays too small, with the resources of its nodes.
    """
    num_workers = getattr(experiment, section).num_workers
    use_gpu = _uses_gpu(experiment.train.device, num_workers)
    each = {"CPU": 1.0, **({"GPU": 1.0} if use_gpu else {})}
    require(each, experiment.cluster, f"{section}.num_workers", num_workers)
    return each


def _trainer(
    config: dict[str, Any], folder: Path, num_workers: int, each: dict[str, float]
) -> TorchTrainer:
    """Return Ray Train's trainer, which keeps its checkpoints in `folder`.

    Args:
        config: Argument of `_worker`.
        folder: Folder of the run, or of the teacher.
        num_workers: Number of workers to start.
        each: Resources that each worker reserves.
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
    """Copy the trained weights from the last checkpoint; return the metrics of that epoch."""
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
    """Leaves Ctrl-C to the command, which cleans up; Ray would end the process at once."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Register no handler."""


def _user_error(error: TrainingFailedError, why_ended: str = "") -> UserError | None:
    """Return the error of workers that failed for a reason other than a defect; else None.

    Such reasons are a mistake of the user, the storage, or a lost worker.

    Args:
        error: The error that Ray raised.
        why_ended: Why the report reader ended the workers (`ReportReader.why_ended`).
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
    """Train one rank in a Ray Train worker.

    Returns:
        The error's class name and text, if a loss was not finite, if no rank could read the
        checkpoint, or if the network cannot be shared; otherwise None. All ranks find such an error
        at the same point and end together. If it were raised, Ray would start the group again, only
        to meet the same error.

    Raises:
        UserError: If the network cannot be shared, and only some ranks have found it.
    """
    refuse_other_versions(config["versions"])
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
            note = json.dumps(metrics)  # for a driver that ends before it receives them
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
        return _unshared(config["section"])
    return None


def _unshared(section: str) -> tuple[str, str]:
    """Return the error of a network that cannot be shared, if all ranks have found it.

    If blocks are left out at random, only some ranks may find it. The others then wait for them in
    an exchange, and only an exception ends them all.

    Raises:
        UserError: If another rank does not come within `MEET_SECONDS`.
    """
    error = UserError(f"{section}.{_UNUSED}")
    if dist.get_backend() == dist.Backend.GLOO:  # other backends have no such barrier
        try:
            dist.monitored_barrier(timeout=timedelta(seconds=MEET_SECONDS))
        except RuntimeError:
            raise error from None
    return UserError.__name__, str(error)


def _go_on(training: Training, checkpoint: train.Checkpoint) -> str:
    """Load a checkpoint on this rank; return the error if no rank can read it, else an empty text.

    Raises:
        UserError: If this rank cannot read it but others can.
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
