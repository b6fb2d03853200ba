"""Training a teacher that comes without weights."""

from __future__ import annotations

from collections.abc import Callable

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
    model: nn.Module,
    device: torch.device,
    report: Callable[[int, int], None],
) -> None:
    """Train a teacher by plain cross-entropy, as its experiment says.

    Args:
        experiment: `[teacher]`, the views and the batch size.
        dataset: Its data.
        model: With fresh weights, which are changed.
        device: Where to train.
        report: Gets the epochs that are done, and how many there are.

    Raises:
        NonFiniteError: If the loss becomes NaN or infinite.
    """
    config = experiment.teacher
    settings = TrainConfig(
        num_epochs=config.num_epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        global_batch_size=experiment.train.global_batch_size,
        seed=config.seed,
        max_grad_norm=0.0,  # cross-entropy alone needs none, and kept teachers had none
    )
    context = MethodContext.without_teacher(len(dataset.classes))
    learner = Learner(model, (), build_method("plain", context, {}))
    loader = Loader(
        dataset,
        experiment.views,
        global_batch_size=settings.global_batch_size,
        seed=config.seed,
        device=device,
        store=None,
        gpu_share_for_images=experiment.train.gpu_share_for_images,
        preprocessing=preprocessing_of_network(model),
    )
    training = Training(
        learner, loader, (dataset, dataset.split("val")), settings, Workers.alone(device)
    )
    while not training.finished:
        try:
            training.run_epoch()
        except NonFiniteError as error:
            rate = f"teacher.learning_rate is {config.learning_rate:g}"
            raise NonFiniteError(f"teacher: {error} ({rate})") from None
        report(training.epoch, config.num_epochs)
