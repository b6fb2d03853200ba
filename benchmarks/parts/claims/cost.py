"""Estimate the cost of a full run: trainings are counted, one step of each method is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from krscale.config import Experiment
from krscale.data import describe_data
from krscale.knowledge.features import (
    KINDS,
    FeatureKind,
    Shapes,
    feature_shapes,
    read_features,
    stage_paths,
    stage_shapes,
)
from krscale.methods import Batch, Learner, MethodContext, build_method
from krscale.setup.network_builder import build_student, build_teacher, resolve_taps
from krscale.setup.networks import TeacherNetwork
from krscale.setup.plan import ExperimentPlan, describe
from parts.claims.families import Family

_STEPS = 8  # timed steps: the minimum counts, since other work only makes a step longer
_BESIDES_STEP = 1.3  # with views, the store, validation and Tune, over the bare step (measured)
_STOPPED = 0.5  # share of its epochs that a trial of the search runs on average, early stopping on

StepSeconds = Mapping[str, Sequence[float]]
"""CPU seconds of a whole training by method, one for each size, smallest first."""


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


def family_cost(family: Family, experiment: Experiment, seconds: StepSeconds) -> Cost:
    """Estimate one search of a family from the CPU seconds of full trainings of its methods."""
    search = experiment.search
    share = _STOPPED if search.early_stopping != "none" and search.trials_per_size > 1 else 1.0
    each = share * search.trials_per_size + search.num_final_seeds
    num_studies = sum(len(seconds[method]) for method in family.methods)
    return Cost(
        num_studies * search.trials_per_size,
        num_studies * search.num_final_seeds,
        each * sum(sum(seconds[method]) for method in family.methods),
    )


def followers_cost(num_each: int, experiment: Experiment, seconds: Sequence[float]) -> float:
    """Estimate the CPU seconds of trainings with KR's winners' settings.

    Args:
        num_each: Number of kinds of such trainings at each size.
        experiment: A search of KR.
        seconds: Of one training of KR at each size.
    """
    return num_each * (experiment.search.num_final_seeds + 1) * sum(seconds)


def training_seconds(experiment: Experiment, methods: Iterable[str]) -> dict[str, list[float]]:
    """Return, by method, the CPU seconds of one full training at each size, smallest first."""
    plan = describe(experiment)
    num_steps = steps_per_epoch(experiment, plan) * experiment.train.num_epochs
    return {
        method: [
            _BESIDES_STEP * num_steps * _method_step(experiment, plan, method, size.width)
            for size in plan.sizes
        ]
        for method in methods
    }


def teacher_seconds(experiment: Experiment) -> float:
    """Return the CPU seconds of training the teacher."""
    plan = describe(experiment)
    task = describe_data(experiment.data, experiment.cache_path)
    network = build_teacher(experiment, task)
    images = torch.randn(experiment.train.global_batch_size, *task.image_shape)
    labels = torch.randint(task.num_classes, (len(images),))
    step = _step_seconds(network, lambda: F.cross_entropy(network(images), labels))
    return _BESIDES_STEP * step * steps_per_epoch(experiment, plan) * experiment.teacher.num_epochs


def steps_per_epoch(experiment: Experiment, plan: ExperimentPlan) -> int:
    """Return the optimiser steps of an epoch, as the loader takes them."""
    return -(-plan.num_train // experiment.train.global_batch_size)


def _method_step(experiment: Experiment, plan: ExperimentPlan, method: str, width: int) -> float:
    networks = plan.networks
    student = build_student(experiment, networks, width)
    taps, stage_ends = resolve_taps(student, experiment.any_student.taps, "student.taps")
    shapes = [
        stage_shapes(student, paths, networks.image_shape)
        for paths in (taps, stage_paths(student, taps))
    ]
    teacher, num_classes = networks.teacher, networks.num_classes
    context = MethodContext(
        num_classes, teacher.num_taps, teacher.stage_ends, torch.ones(teacher.num_taps),
        shapes[0], (), None, torch.ones(teacher.num_taps), shapes[1],
        _teacher_shapes(teacher), stage_ends,
    )  # fmt: skip
    built = build_method(method, context, experiment.distill)
    reads = built.reads(taps, stage_paths(student, taps))
    learner = Learner(student, reads.taps, built, reads.stages)
    batch = _random_batch(experiment, plan)

    def loss() -> torch.Tensor:
        return torch.stack(list(learner(batch).terms.values())).sum() / batch.global_size

    return _step_seconds(learner, loss)


def _teacher_shapes(teacher: TeacherNetwork) -> dict[FeatureKind, Shapes]:
    return {kind: feature_shapes(kind, teacher.stage_shapes) for kind in KINDS}


def _random_batch(experiment: Experiment, plan: ExperimentPlan) -> Batch:
    networks, size = plan.networks, experiment.train.global_batch_size
    stages = [torch.rand(size, *shape) for shape in networks.teacher.stage_shapes]
    return Batch(
        torch.randn(size, *networks.image_shape),
        torch.randint(networks.num_classes, (size,)),
        torch.arange(size),
        torch.randn(size, networks.teacher.num_taps, networks.num_classes),
        size,
        {kind: read_features(kind, stages) for kind in KINDS},
    )


def _step_seconds(network: nn.Module, loss: Callable[[], torch.Tensor]) -> float:
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, fused=True)
    network.train()
    seconds = []
    for _ in range(_STEPS):
        started = time.process_time()
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
        seconds.append(time.process_time() - started)
    return min(seconds)
