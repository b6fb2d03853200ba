"""From a finished search to an exported student: choose, train again if asked, export."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from krscale.config import Experiment, with_values
from krscale.data import Dataset
from krscale.export import (
    ExportedFile,
    StudentCard,
    check_formats,
    check_target,
    decoding_of,
    export_student,
    find_raw_files,
)
from krscale.foreign import user_path
from krscale.metrics import ACCURACY
from krscale.models.preprocessing import preprocessing_of_network
from krscale.parallel import Workers
from krscale.report import Candidate, Choice, Curve, Limits, choose, read_curve
from krscale.runs.binding import check_networks
from krscale.runs.experiment_file import read_experiment
from krscale.runs.kinds import require_search
from krscale.runs.origin import git_commit
from krscale.runs.refit import refit
from krscale.runs.students import check_unlabelled, data_of_the_run, load_final, trial_of
from krscale.setup.network_builder import build_student
from krscale.setup.prepare import Reporter
from krscale.setup.sizes import StudentSize
from krscale.training.checkpoint import load_weights
from krscale.training.loop import evaluate


@dataclass(frozen=True)
class Order:
    """What the user wants.

    Attributes:
        limits: Limits by which the student is chosen.
        refit: Whether to train it again on train and validation.
        formats: Names of the formats to export.
        output: The folder to export to; None for a folder in the run's `export`.
    """

    limits: Limits
    refit: bool
    formats: tuple[str, ...]
    output: Path | None = None


@dataclass(frozen=True)
class Delivery:
    """A student that was chosen and exported.

    Attributes:
        choice: Which student was chosen, and why.
        card: Description of the student.
        folder: The folder of the export.
        files: The files, with what a fresh process measured on them.
    """

    choice: Choice
    card: StudentCard
    folder: Path
    files: tuple[ExportedFile, ...]

    def content(self) -> dict[str, Any]:
        """Return everything as JSON-serialisable content."""
        other = self.choice.runner_up
        return {
            "picked": self.choice.picked.facts(),
            "runner_up": other.facts() if other else None,
            "reasons": list(self.choice.reasons),
            "student": self.card.content(),
            "folder": str(self.folder),
            "files": [asdict(file) for file in self.files],
        }


def choose_student(run_path: Path, order: Order) -> tuple[Curve, Choice]:
    """Choose from a run's curve, after refusing whatever would fail later.

    Raises:
        UserError: If the run has no curve, the formats or the folder cannot be used, or no student
            is within the limits.
    """
    check_formats(order.formats)
    require_search(run_path)
    curve = read_curve(run_path)
    choice = choose(curve, order.limits)
    check_target(_target(run_path, order, choice.picked))
    return curve, choice


def deliver(
    run_path: Path, curve: Curve, choice: Choice, order: Order, reporter: Reporter
) -> Delivery:
    """Export what `choose_student` chose.

    Args:
        run_path: Folder of the run; it may have been moved together with the cache beside it.
        curve: The run's curve.
        choice: The choice from the curve.
        order: What the user wants.
        reporter: Receives the progress.

    Raises:
        UserError: If data or weights are no longer those of the run; if the networks are not, and
            the student is trained again; or if an exported file differs from the run's student.
    """
    picked = choice.picked
    experiment = with_values(
        read_experiment(run_path),
        {"storage_path": str(run_path.parent), "name": run_path.name},
        str(run_path),
    )
    reporter.phase("data")
    dataset = data_of_the_run(experiment, curve, reporter)
    trial, size = trial_of(experiment, picked, dataset)
    if order.refit:
        check_unlabelled(experiment, dataset, curve)
        check_networks(run_path, experiment, dataset, picked.size.capacity)
    student, accuracy = _student(experiment, trial, dataset, size, picked, order, reporter)
    card = _card(student, size, curve, trial, dataset, picked, accuracy, order.refit)
    reporter.phase("export")
    folder = _target(run_path, order, picked)
    raw = find_raw_files(dataset, experiment.data, reporter.note)
    files = export_student(student, card, dataset, folder, order.formats, raw)
    return Delivery(choice, card, folder, files)


def _target(run_path: Path, order: Order, picked: Candidate) -> Path:
    if order.output is not None:
        return user_path(order.output, "--output").resolve()
    name = f"{picked.size.capacity.replace('/', '-')}-{picked.method}"
    return run_path / "export" / (name + "-refit" * order.refit)


def _student(
    experiment: Experiment,
    trial: Experiment,
    dataset: Dataset,
    size: StudentSize,
    picked: Candidate,
    order: Order,
    reporter: Reporter,
) -> tuple[nn.Module, dict[str, float | None]]:
    """Return the student and its accuracies: those of the table, or those of its refit."""
    if not order.refit:
        place = picked.best_seed
        student = load_final(experiment, trial, dataset, size.width, picked)
        val, test = picked.result.val_accuracies[place], picked.result.test_accuracies[place]
        return student, {"val": val, "test": test}
    student = build_student(trial, dataset, size.width, fresh=True)
    weights = refit(trial, dataset, size.width, experiment.run_path, reporter)
    load_weights(weights, student)
    reporter.phase("test")
    alone = Workers.alone(torch.device("cpu"))
    test = evaluate(student, dataset, dataset.split("test"), alone)[ACCURACY.name]
    return student, {"val": None, "test": test}


def _card(
    student: nn.Module,
    size: StudentSize,
    curve: Curve,
    trial: Experiment,
    dataset: Dataset,
    picked: Candidate,
    accuracy: dict[str, float | None],
    refitted: bool,
) -> StudentCard:
    """Return the card of the student: network, inputs, accuracies and provenance."""
    inputs = preprocessing_of_network(student).resolved(dataset.mean, dataset.std)
    return StudentCard(
        model=trial.any_student.model,
        width=size.width,
        options=trial.any_student.options,
        num_parameters=size.num_parameters,
        flops=size.flops,
        classes=dataset.classes,
        image_shape=dataset.image_shape,
        mean=inputs.mean or (),
        std=inputs.std or (),
        pixel_range=inputs.pixel_range,
        channel_order=inputs.channel_order,
        input_size=inputs.input_size,
        interpolation=inputs.interpolation,
        decoding=decoding_of(trial.data),
        accuracy=accuracy,
        output_key=trial.any_student.output_key,
        provenance=_provenance(size, curve, trial, dataset, picked, refitted),
    )


def _provenance(
    size: StudentSize,
    curve: Curve,
    trial: Experiment,
    dataset: Dataset,
    picked: Candidate,
    refitted: bool,
) -> dict[str, Any]:
    """Return where a student comes from: code, run, settings, data, teacher, and other seeds."""
    result = picked.result
    return {
        "krscale": version("krscale"),
        "run": curve.name,
        "commit": curve.commit,
        "exported_by_commit": git_commit(),
        "capacity": size.capacity,
        "method": picked.method,
        "settings": dict(result.best),
        "seed": trial.train.seed,
        "num_epochs": trial.train.num_epochs,
        "trained_on": ["train", "val"] if refitted else ["train"],
        "experiment": trial.fingerprint(),
        "data": {"source": dataset.source, "fingerprint": dataset.fingerprint},
        "teacher": dict(curve.teacher),
        "over_seeds": {
            "seeds": list(result.seeds),
            "val_accuracies": list(result.val_accuracies),
            "test_accuracies": list(result.test_accuracies),
        },
    }
