"""One student from config to weights: `krscale distill`, in this process or over Ray Train."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from krscale.cluster.connect import connect
from krscale.cluster.nodes import reach_storage
from krscale.cluster.teacher import teach_on_workers
from krscale.cluster.train import STUDENT_FILE, require_workers, train_on_workers
from krscale.cluster.worker_reports import OnEpoch
from krscale.config import Experiment, read_record, with_values
from krscale.config.records import Accuracy, NotNegative
from krscale.data import Dataset, open_data
from krscale.errors import UserError
from krscale.files import write_json
from krscale.metrics import ACCURACY, TEST_ACCURACY, VAL_ACCURACY
from krscale.models.capacity import latency_ms
from krscale.models.preprocessing import input_shape
from krscale.parallel import Workers
from krscale.progress import Progress
from krscale.runs.aside import ORIGIN_FILE
from krscale.runs.binding import bind, bind_weights
from krscale.runs.folder import run_folder
from krscale.runs.origin import git_commit, origin_tags
from krscale.runs.weights import check_weights, rebuild_student
from krscale.setup.build import Assets, build_training
from krscale.setup.network_builder import build_student
from krscale.setup.prepare import Prepared, Setup, pick_device, prepare_knowledge
from krscale.setup.sizes import StudentSize, find_size
from krscale.showing import show, terminal
from krscale.tracking import Tracker, datasets_used, has_record, recording_seconds
from krscale.training.checkpoint import load_weights, save_weights
from krscale.training.loop import evaluate, fit_or_continue

RESULT_FILE = "student.json"
CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class StudentResult:
    """A trained student and how good it is.

    Attributes:
        name: Name of the run.
        commit: Commit of krscale.
        method: Method of the training.
        capacity: Requested share of the teacher's parameters, or name of the student.
        width: Capacity dial of the network.
        num_parameters: Parameters without heads.
        flops: FLOPs of one forward of one image.
        latency_ms: Milliseconds of one image on one CPU thread.
        num_workers: Workers that trained it.
        val_accuracy: Validation accuracy at the last epoch.
        test_accuracy: Test accuracy, measured once, at the end.
        teacher_val_accuracy: Validation accuracy of the teacher, for comparison.
        weights: Path of the weights.
    """

    name: str
    commit: str
    method: str
    capacity: str
    width: int
    num_parameters: int
    flops: int
    latency_ms: NotNegative
    num_workers: int
    val_accuracy: Accuracy
    test_accuracy: Accuracy
    teacher_val_accuracy: Accuracy
    weights: str


def distil(
    experiment: Experiment, *, as_json: bool, quiet: bool, new_data: bool = False
) -> StudentResult:
    """Train one student; or continue it, or show its result if this experiment already trained it.

    Args:
        experiment: What to train.
        as_json: Print the result as JSON instead of the table.
        quiet: Show no progress on stderr.
        new_data: Put the results of other data, or of another teacher, aside and begin again.
    """
    _refuse_varying_workers(experiment)
    experiment = _own_name(experiment)
    reach_storage(experiment, on_nodes=experiment.train.num_workers > 1)
    with (
        Progress(quiet=quiet, planned={}) as progress,
        run_folder(experiment, {}, say=progress.note) as folder,
    ):
        has_ended = _has_ended(folder)
        is_bound = (folder / ORIGIN_FILE).exists()
        if has_ended and not is_bound and not new_data:
            progress.note(
                f"{folder}: its result is older than the record of its data, and is shown as it "
                "was; --new-data begins again."
            )
        else:
            setup = Setup.resolve(experiment, progress)
            experiment = setup.experiment
            for line in bind(folder, setup, new_data=new_data):
                progress.note(line)
            has_ended = _has_ended(folder)  # unless it was put aside
        if not has_ended:
            if (folder / RESULT_FILE).exists():
                progress.note(f"{folder / STUDENT_FILE} is gone; the student is trained again.")
            if experiment.train.num_workers > 1:  # before a teacher is trained in vain
                connect(experiment.cluster)
                require_workers(experiment, "train")
            prepared = prepare_knowledge(setup, progress, train=teach_on_workers)
            bind_weights(folder, Path(prepared.teacher_path))
            dataset, size = setup.dataset, find_size(setup.networks)
            result = _train_and_test(experiment, prepared, dataset, size, progress)
            write_json(folder / RESULT_FILE, asdict(result))
        result = read_result(folder)
        if has_ended:
            check_weights(Path(result.weights), rebuild_student(folder))
        if has_ended and experiment.tracking.enabled and not has_record(folder):
            _record_late(experiment, result, progress)
    _show(result, as_json)
    return result


def _has_ended(folder: Path) -> bool:
    """Whether a run has its result and the weights that the result names."""
    return (folder / RESULT_FILE).exists() and (folder / STUDENT_FILE).exists()


def _refuse_varying_workers(experiment: Experiment) -> None:
    train = experiment.train
    if train.most_workers > train.num_workers:
        raise UserError(
            f"train.max_workers: only the trials of a search take as many workers as there are; "
            f"this command trains on train.num_workers = {train.num_workers}. Set it to 0 (--set "
            f"train.max_workers=0)."
        )


def read_result(folder: Path) -> StudentResult:
    """Read the result of the student of a run folder.

    Raises:
        DamagedFileError: If `student.json` is not what was written.
    """
    path = folder / RESULT_FILE
    rebuild = "Delete it; the same command trains what is missing and tests the student again."
    result = read_record(path, StudentResult, rebuild)
    # The folder may have been moved since it was written.
    return replace(result, weights=str(folder / STUDENT_FILE))


def _own_name(experiment: Experiment) -> Experiment:
    """Give every student its own folder: a name may serve a search and many students."""
    parts = experiment.distill
    kind = f"{parts.method}-{parts.capacity}".translate(str.maketrans("+/", "--"))
    name = f"{experiment.name}-{kind}"
    return with_values(experiment, {"name": f"{name}-{experiment.fingerprint()[:6]}"}, "distill")


def _train_and_test(
    experiment: Experiment,
    prepared: Prepared,
    dataset: Dataset,
    size: StudentSize,
    progress: Progress,
) -> StudentResult:
    progress.phase("train")
    tracker = Tracker(
        experiment.tracking.uri,
        experiment.tracking.experiment,
        experiment.run_path,
        enabled=experiment.tracking.enabled,
        system_metrics=experiment.tracking.system_metrics,
    )

    def on_epoch(metrics: dict[str, float]) -> None:
        tracker.log_metrics("student", metrics, step=int(metrics["epoch"]))
        progress.advance(int(metrics["epoch"]), experiment.train.num_epochs)

    try:
        try:
            _start_record(tracker, experiment, prepared, size)
            metrics = _train(experiment, prepared, size.width, on_epoch, progress.note)
            result = _test(experiment, prepared, dataset, size, metrics)
        except BaseException as error:
            _end_badly(tracker, error)
            raise
        final = {TEST_ACCURACY: result.test_accuracy, "size/latency_ms": result.latency_ms}
        tracker.log_metrics("student", final, step=experiment.train.num_epochs)
        tracker.end_run("student", "COMPLETE")
    finally:
        tracker.close(recording_seconds())
    return result


def _train(
    experiment: Experiment,
    prepared: Prepared,
    width: int,
    on_epoch: OnEpoch,
    note: Callable[[str], None],
) -> dict[str, float]:
    if experiment.train.num_workers == 1:
        return _train_here(experiment, prepared, width, on_epoch)
    return train_on_workers(experiment, prepared, width, on_epoch, note)


def _end_badly(tracker: Tracker, error: BaseException) -> None:
    """End the run as failed, with the reason, so that MLflow does not show it as running."""
    if not tracker.has_run("student"):
        return
    stopped = isinstance(error, KeyboardInterrupt)
    reason = "interrupted" if stopped else f"{type(error).__name__}: {error}"
    tracker.set_tags("student", {"krscale.error": reason})
    tracker.end_run("student", "FAIL")


def _start_record(
    tracker: Tracker, experiment: Experiment, prepared: Prepared, size: StudentSize
) -> None:
    tags = {
        "krscale.kind": "student",
        "krscale.method": experiment.distill.method,
        "krscale.size": size.capacity,
        **origin_tags(experiment, prepared),
        "krscale.error": "",  # clears that of an earlier start that was interrupted
    }
    data = open_data(Path(prepared.data_path))
    datasets = datasets_used(data, experiment.data, prepared.taught)
    tracker.start_run(
        "student",
        name=experiment.name,
        tags=tags,
        params=_params(experiment) | prepared.params(experiment.distill.method),
        datasets=datasets,
    )
    sizes = {"size/num_parameters": size.num_parameters, "size/flops": size.flops}
    tracker.log_metrics("student", {k: float(v) for k, v in sizes.items()}, step=0)


def _record_late(experiment: Experiment, result: StudentResult, progress: Progress) -> None:
    """Record a student that ended while nothing was recorded, from the result in its folder."""
    with Tracker(
        experiment.tracking.uri,
        experiment.tracking.experiment,
        experiment.run_path,
        warn=progress.note,
    ) as tracker:
        tags = {
            "krscale.kind": "student",
            "krscale.method": result.method,
            "krscale.size": result.capacity,
            "krscale.commit": result.commit,
            "krscale.experiment": experiment.fingerprint(),
            "krscale.recorded": f"later, from {RESULT_FILE}",
        }
        tracker.start_run("student", name=experiment.name, tags=tags, params=_params(experiment))
        sizes = {"num_parameters": result.num_parameters, "flops": result.flops}
        found = {f"size/{name}": float(value) for name, value in sizes.items()}
        tracker.log_metrics("student", found, step=0)
        final = {
            "val/accuracy": result.val_accuracy,
            "test/accuracy": result.test_accuracy,
            "size/latency_ms": result.latency_ms,
        }
        tracker.log_metrics("student", final, step=experiment.train.num_epochs)
        tracker.end_run("student")
    progress.note(
        f"{result.name} ended while nothing was recorded; MLflow has its settings, size and final "
        f"accuracy now. The metrics of its epochs were not kept."
    )


def _params(experiment: Experiment) -> dict[str, Any]:
    sections = experiment.model_dump(mode="json", include={"distill", "train"})
    return {f"{s}.{k}": v for s, fields in sections.items() for k, v in fields.items()}


def _train_here(
    experiment: Experiment, prepared: Prepared, width: int, on_epoch: OnEpoch
) -> dict[str, float]:
    """Train in this process; each epoch is kept, and an interrupted training continues from it."""
    workers = Workers.alone(pick_device(experiment.train.device))
    training = build_training(experiment, Assets.open(prepared), width, workers)
    metrics = fit_or_continue(training, experiment.run_path / CHECKPOINT, on_epoch)
    save_weights(experiment.run_path / STUDENT_FILE, training.student)
    return metrics


def _test(
    experiment: Experiment,
    prepared: Prepared,
    dataset: Dataset,
    size: StudentSize,
    metrics: dict[str, float],
) -> StudentResult:
    student = build_student(experiment, dataset, size.width, fresh=True)
    weights = experiment.run_path / STUDENT_FILE
    load_weights(weights, student, where=str(weights))
    alone = Workers.alone(torch.device("cpu"))
    return StudentResult(
        name=experiment.name,
        commit=git_commit(),
        method=experiment.distill.method,
        capacity=size.capacity,
        width=size.width,
        num_parameters=size.num_parameters,
        flops=size.flops,
        latency_ms=latency_ms(student, input_shape(student, dataset.image_shape)),
        num_workers=experiment.train.num_workers,
        val_accuracy=metrics[VAL_ACCURACY],
        test_accuracy=evaluate(student, dataset, dataset.split("test"), alone)[ACCURACY.name],
        teacher_val_accuracy=prepared.teacher.val_accuracy,
        weights=str(Path(weights)),
    )


def _show(result: StudentResult, as_json: bool) -> None:
    if as_json:
        json.dump(asdict(result), sys.stdout, indent=2)
        show()
        return
    table = Table("student", "parameters", "FLOPs", "latency", "val", "test", "teacher's val")
    table.add_row(
        f"{result.method} {result.capacity}",
        f"{result.num_parameters:,}",
        f"{result.flops:,}",
        f"{result.latency_ms:.2f} ms",
        f"{result.val_accuracy:.2%}",
        f"{result.test_accuracy:.2%}",
        f"{result.teacher_val_accuracy:.2%}",
    )
    terminal().print(table)
    show(f"Weights: {result.weights}")
