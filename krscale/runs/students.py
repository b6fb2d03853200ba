"""Building and loading the final students of a finished search again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from krscale.config import Experiment
from krscale.data import Dataset, prepare_data, prepare_unlabelled
from krscale.errors import UserError
from krscale.models.preprocessing import Preprocessing, preprocessing_of_network
from krscale.report import Candidate, Curve
from krscale.runs.folder import student_path
from krscale.runs.weights import check_weights, rebuild_final
from krscale.setup.build import trial_experiment
from krscale.setup.network_builder import build_student
from krscale.setup.networks import Networks
from krscale.setup.prepare import Reporter
from krscale.setup.sizes import StudentSize, find_size
from krscale.training.checkpoint import load_weights


def data_of_the_run(experiment: Experiment, curve: Curve, reporter: Reporter) -> Dataset:
    """Return the data that a curve was measured on.

    Raises:
        UserError: If the data has changed since.
    """
    dataset = prepare_data(experiment.data, experiment.cache_path, reporter.advance, reporter.note)
    expected = curve.data.get("fingerprint", "none")
    if expected not in (dataset.fingerprint, dataset.identity):
        raise UserError(
            f"{dataset.path}: the data is not what the run was trained on: its fingerprint is "
            f"{dataset.fingerprint}, the curve has {expected}."
        )
    return dataset


def check_unlabelled(experiment: Experiment, dataset: Dataset, curve: Curve) -> None:
    """Refuse a refit if the images without labels are not those of the run."""
    taught = prepare_unlabelled(experiment.data, dataset, experiment.cache_path)
    if taught.unlabelled != curve.data.get("unlabelled", ""):
        raise UserError(
            f"data.unlabelled: {experiment.data.unlabelled}: these images are not those that the "
            "run learned from; restore them, or pick without --refit."
        )


def trial_of(
    experiment: Experiment, picked: Candidate, dataset: Dataset
) -> tuple[Experiment, StudentSize]:
    """Return the experiment of a winner's best final training, and the size of its student."""
    trial = trial_experiment(
        experiment,
        picked.method,
        {**picked.result.best, "distill.capacity": picked.size.capacity},
        picked.result.seeds[picked.best_seed],
    )
    return trial, find_size(Networks.resolve(trial, dataset))  # of the architecture that won


def load_final(
    experiment: Experiment, trial: Experiment, dataset: Dataset, width: int, picked: Candidate
) -> nn.Module:
    """Return the student of a winner's best final training.

    Args:
        experiment: The experiment of the run.
        trial: The experiment of the training; see `trial_of`.
        dataset: The data of the run.
        width: The student's capacity dial.
        picked: The winner.
    """
    student = build_student(trial, dataset, width, fresh=True)
    seed = picked.result.seeds[picked.best_seed]
    path = student_path(experiment.run_path, picked.method, picked.size.capacity, seed)
    check_weights(path, rebuild_final(path))
    load_weights(path, student)
    return student


class FromPixels(nn.Module):
    """A student with its preprocessing, which takes images in 0..1 or normalised images.

    Args:
        student: The student, with its preprocessing attached.
        dataset: The data that it was trained on.
        mean: Mean by which the images are normalised, for each channel or one for all.
        std: Standard deviation, likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        student: nn.Module,
        dataset: Dataset,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        self.student = student
        self.preprocessing = preprocessing_of_network(student)
        self.of_data = dataset.mean, dataset.std
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to logits `[B, K]`."""
        pixels = (images * self.std + self.mean) * 255.0
        logits: Tensor = self.student(self.preprocessing.apply(pixels, *self.of_data))
        return logits


def takes_as_given(
    student: nn.Module, dataset: Dataset, mean: Sequence[float], std: Sequence[float]
) -> bool:
    """Whether a student's own preprocessing is this normalisation, so that it needs no wrapper."""
    own = preprocessing_of_network(student)
    given = Preprocessing(mean=tuple(mean), std=tuple(std))
    return own.resolved(dataset.mean, dataset.std) == given.resolved(dataset.mean, dataset.std)
