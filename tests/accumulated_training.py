"""A short training whose batches are computed in parts, on one worker or on several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from krscale.batch_norm import convert_batch_norm
from krscale.config import DataConfig, TrainConfig, ViewsConfig, load
from krscale.config.training import Precision
from krscale.data import Split, prepare_data
from krscale.data.loader import Loader
from krscale.methods import Batch, MethodContext, build_method
from krscale.methods.learner import Learner
from krscale.models.preprocessing import DEFAULT
from krscale.parallel import Workers, share_of
from krscale.setup.network_builder import build_teacher
from krscale.setup.teacher_training import build_teacher_training
from krscale.training.loop import Training, evaluate, fit


class WithoutNorm(nn.Module):
    """Smooth, and without batch norm, which would normalise by the statistics of a part."""

    tap_paths = ()

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.GroupNorm(2, 4))
        self.classifier = nn.Linear(4, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.first(images).mean(dim=(2, 3)))


class WithNorm(WithoutNorm):
    """The same with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU())


def accumulated_training(
    workers: Workers,
    num_parts: int,
    cache: Path,
    precision: Precision = "fp32",
    num_epochs: int = 1,
) -> Training:
    """Return a training of three steps per epoch, the last with a batch of another size.

    In bf16 its student has a batch norm.
    """
    settings = TrainConfig(
        num_epochs=num_epochs,
        global_batch_size=41,
        gradient_accumulation=num_parts,
        learning_rate=0.3,
        precision=precision,
    )
    dataset = prepare_data(DataConfig(max_images=200), cache)
    torch.manual_seed(7)
    student = WithNorm() if precision == "bf16" else WithoutNorm()
    loader = Loader(
        dataset,
        ViewsConfig(),
        global_batch_size=settings.global_batch_size,
        seed=0,
        device=torch.device("cpu"),
        store=None,
        rank=workers.rank,
        world_size=workers.world_size,
    )
    method = build_method("plain", MethodContext.without_teacher(10), {})
    return Training(Learner(student, (), method), loader, None, settings, workers)


def weights_after_an_epoch(
    workers: Workers, num_parts: int, cache: Path, precision: Precision = "fp32"
) -> dict[str, Tensor]:
    """Return the weights and the epoch's mean loss."""
    training = accumulated_training(workers, num_parts, cache, precision)
    metrics = training.run_epoch()
    loss = torch.tensor(metrics["train/loss"])
    return {**{k: v.clone() for k, v in training.student.state_dict().items()}, "loss": loss}


def training_with_dropout(workers: Workers, cache: Path) -> tuple[Training, list[Tensor]]:
    """Return a training of two epochs with dropout, and the list that will hold its masks."""
    training = accumulated_training(workers, 1, cache, num_epochs=2)
    masks: list[Tensor] = []

    def drop(classifier: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        mask = nn.functional.dropout(torch.ones_like(inputs[0]), 0.5, classifier.training)
        if classifier.training:
            masks.append(mask)
        return inputs[0] * mask

    student = training.learner.student
    assert isinstance(student, WithoutNorm)
    student.classifier.register_forward_pre_hook(drop)
    return training, masks


def dropout_on_workers(workers: Workers, folder: Path) -> dict[str, Tensor]:
    """Return the masks of two epochs, those of the second after a restart, and the last weights."""
    training, masks = training_with_dropout(workers, folder / "cache")
    training.run_epoch()
    if workers.rank == 0:  # its state is the one that is kept
        torch.save(training.state_dict(), folder / "state.pt")
    dist.barrier()
    training.run_epoch()
    resumed, repeated = training_with_dropout(workers, folder / "cache")
    resumed.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    resumed.run_epoch()
    first, second = torch.cat(masks).chunk(2)
    weights = {name: value.clone() for name, value in training.student.state_dict().items()}
    again = {f"again {name}": value for name, value in resumed.student.state_dict().items()}
    return {"first": first, "second": second, "repeated": torch.cat(repeated), **weights, **again}


class Told:
    """Batches of random images with a teacher's outputs, of which each worker takes its share."""

    images, preprocessing = torch.zeros(0, 1, 8, 8), DEFAULT
    num_samples, num_steps = 24, 4

    def __init__(self, workers: Workers) -> None:
        self.workers = workers

    def epoch(self, epoch: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(self.num_steps):
            images = torch.randn(6, 1, 8, 8, generator=generator)
            labels = torch.randint(10, (6,), generator=generator)
            said = torch.randn(6, 2, 10, generator=generator)
            whole = Batch(images, labels, torch.arange(6), said, 6)
            yield whole.rows(*share_of(6, self.workers.rank, self.workers.world_size))


def taught_in_every_second_step(workers: Workers) -> dict[str, Tensor]:
    """Return the weights of a student and of its head, which every second step teaches."""
    torch.manual_seed(7)
    context = MethodContext(
        num_classes=10,
        num_teacher_taps=2,
        stage_ends=(1, 2),
        information_gain=torch.tensor([0.4, 0.8]),
        student_shapes=((4, 6, 6),),
        student_layers=((), ()),
        teacher_histograms=None,
        teacher_layer_sizes=torch.ones(2),
    )
    method = build_method("kr", context, {"auxiliary_interval": 2})
    learner = Learner(WithoutNorm(), ("first",), method)
    settings = TrainConfig(num_epochs=3, global_batch_size=6, learning_rate=0.3, weight_decay=0.01)
    fit(Training(learner, Told(workers), None, settings, workers), lambda metrics: None)
    return {name: value.clone() for name, value in learner.state_dict().items()}


def teacher_after_an_epoch(workers: Workers, cache: Path) -> dict[str, Tensor]:
    """Return the weights of a teacher with batch norm, its mean loss and its accuracy."""
    experiment = load(
        None,
        [
            "data.max_images=200", "train.global_batch_size=41", "teacher.num_epochs=1",
            "teacher.model=smooth_student:Smooth", "teacher.width=4",
        ],
    )  # fmt: skip
    dataset = prepare_data(experiment.data, cache)
    torch.manual_seed(experiment.teacher.seed)
    model = build_teacher(experiment, dataset, fresh=True)
    training = build_teacher_training(experiment, dataset, model, workers)
    metrics = training.run_epoch()
    numbers = {key: torch.tensor(metrics[key]) for key in ("train/loss", "val/accuracy")}
    return {**{k: v.clone() for k, v in training.student.state_dict().items()}, **numbers}


def judged_without_running_statistics(
    workers: Workers, cache: Path, order: Sequence[int] = range(17)
) -> dict[str, float]:
    """Evaluate a student whose batch norm keeps no running statistics on 17 images, in `order`."""
    dataset = prepare_data(DataConfig(max_images=113), cache)
    val = dataset.split("val")
    assert len(val.labels) == 17
    torch.manual_seed(7)
    student = WithNorm()
    student.first[1] = nn.BatchNorm2d(4, track_running_stats=False)
    split = Split(val.images[list(order)], val.labels[list(order)])
    return evaluate(convert_batch_norm(student, workers), dataset, split, workers)
