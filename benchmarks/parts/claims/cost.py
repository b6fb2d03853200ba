"""What a full run will cost, before it starts: trainings counted, one step of each size timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from krscale.config import Experiment
from krscale.data import describe_data
from krscale.setup.network_builder import build_student, build_teacher
from krscale.setup.plan import ExperimentPlan, describe
from parts.claims.families import Family

_STEPS = 12  # that are timed; the first third only warms up
_BESIDES_STEP = 1.3  # views, the store, losses, validation and Tune beside the bare step (measured)
_STOPPED = 0.5  # share of its epochs that a trial of the search runs on average, early stopping on


@dataclass(frozen=True)
class Cost:
    """The work of one family of methods.

    Attributes:
        num_trials: Trainings of the search.
        num_finals: Trainings of the winners.
        seconds: CPU seconds of all of them, estimated.
    """

    num_trials: int
    num_finals: int
    seconds: float


def family_cost(family: Family, experiment: Experiment, seconds: Sequence[float]) -> Cost:
    """Estimate a family's work from the CPU seconds of one full training at each of its sizes."""
    search, num_methods = experiment.search, len(family.methods)
    share = _STOPPED if search.early_stopping != "none" and search.trials_per_size > 1 else 1.0
    each = share * search.trials_per_size + search.num_final_seeds
    num_studies = num_methods * len(seconds)
    return Cost(
        num_studies * search.trials_per_size,
        num_studies * search.num_final_seeds,
        num_methods * each * sum(seconds),
    )


def training_seconds(experiment: Experiment) -> list[float]:
    """Return the CPU seconds of one full training at each size, smallest first."""
    plan = describe(experiment)
    task = describe_data(experiment.data, experiment.cache_path)
    num_steps = steps_per_epoch(experiment, plan) * experiment.train.num_epochs
    batch_size = experiment.train.global_batch_size
    seconds = []
    for size in plan.sizes:
        student = build_student(experiment, task, size.width)
        step = _step_seconds(student, batch_size, task.image_shape, task.num_classes)
        seconds.append(_BESIDES_STEP * step * num_steps)
    return seconds


def teacher_seconds(experiment: Experiment) -> float:
    """Return the CPU seconds of training the teacher."""
    plan = describe(experiment)
    task = describe_data(experiment.data, experiment.cache_path)
    batch_size = experiment.train.global_batch_size
    step = _step_seconds(
        build_teacher(experiment, task), batch_size, task.image_shape, task.num_classes
    )
    return _BESIDES_STEP * step * steps_per_epoch(experiment, plan) * experiment.teacher.num_epochs


def steps_per_epoch(experiment: Experiment, plan: ExperimentPlan) -> int:
    """Return the optimiser steps of an epoch, as the loader takes them."""
    return -(-plan.num_train // experiment.train.global_batch_size)


def _step_seconds(
    network: torch.nn.Module, batch_size: int, image_shape: tuple[int, int, int], num_classes: int
) -> float:
    images = torch.randn(batch_size, *image_shape)
    labels = torch.randint(num_classes, (batch_size,))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)
    started = 0.0
    for number in range(_STEPS):
        if number == _STEPS // 3:
            started = time.process_time()
        optimiser.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimiser.step()
    return (time.process_time() - started) / (_STEPS - _STEPS // 3)
