"""Train a teacher that comes without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from krscale.config import Experiment, TrainConfig
from krscale.data import Dataset
from krscale.data.loader import Loader
from krscale.errors import NonFiniteError
from krscale.methods import MethodContext, build_method
from krscale.methods.learner import Learner
from krscale.models.preprocessing import preprocessing_of_network
from krscale.parallel import Workers
from krscale.training.loop import Training


def train_teacher(
    experiment: Experiment,
    dataset: Dataset,
    device: torch.device,
    report: Callable[[int, int], None],
    model: nn.Module,
) -> None:
    """Train a teacher by plain cross-entropy, with its experiment's settings.

    Args:
        experiment: Provides `[teacher]`, the views and the batch size.
        dataset: Its data.
        device: Device for training.
        report: Called with the number of epochs done and of all epochs.
        model: The network with new weights; it is trained in place.

    Raises:
        NonFiniteError: If the loss becomes NaN or infinite.
    """
    training = build_teacher_training(experiment, dataset, model, Workers.alone(device))
    while not training.finished:
        with naming_rate(experiment):
            training.run_epoch()
        report(training.epoch, experiment.teacher.num_epochs)


@contextmanager
def naming_rate(experiment: Experiment) -> Iterator[None]:
    """Add the teacher and its learning rate to the error of a non-finite loss.

    Raises:
        NonFiniteError: In place of the loop's own error.
    """
    try:
        yield
    except NonFiniteError as error:
        rate = f"teacher.learning_rate is {experiment.teacher.learning_rate:g}"
        raise NonFiniteError(f"teacher: {error} ({rate})") from None


def build_teacher_training(
    experiment: Experiment, dataset: Dataset, model: nn.Module, workers: Workers
) -> Training:
    """Build a teacher's training for one of its workers.

    Args:
        experiment: As for `train_teacher`.
        dataset: Its data.
        model: The network with new weights, equal on every worker.
        workers: This worker's rank and device, and the number of workers.
    """
    config = experiment.teacher
    settings = TrainConfig(
        num_epochs=config.num_epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        global_batch_size=experiment.train.global_batch_size,
        seed=config.seed,
        max_grad_norm=0.0,  # plain cross-entropy needs no clipping; stored teachers had none
    )
    context = MethodContext.without_teacher(len(dataset.classes))
    learner = Learner(model, (), build_method("plain", context, {}))
    loader = Loader(
        dataset,
        experiment.views,
        global_batch_size=settings.global_batch_size,
        seed=config.seed,
        device=workers.device,
        store=None,
        rank=workers.rank,
        world_size=workers.world_size,
        gpu_share_for_images=experiment.train.gpu_share_for_images,
        preprocessing=preprocessing_of_network(model),
    )
    return Training(learner, loader, (dataset, dataset.split("val")), settings, workers)
