"""`krscale.distill`: one student distilled in one process, from objects instead of files.

Use it if you have a teacher, a student and two loaders, but no training loop. The training is that
of a trial (`krscale.training`), but the teacher runs on every batch, since its outputs are not
stored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from krscale.batch_norm import SingleValueError
from krscale.config import DistillConfig, TrainConfig
from krscale.config.training import refuse_long_warmup
from krscale.errors import UserError, reworded, unknown_name
from krscale.given_loaders import TaughtBatches, check_loaders, checked_pair, ran_dry
from krscale.knowledge.tap_search import evaluating
from krscale.knowledge.taps import TapOutputs, TappedModel
from krscale.kr import KRLoss, Tap
from krscale.methods import (
    Learner,
    build_method,
    method_settings,
    parse_method,
    reads_taps,
)
from krscale.metrics import VAL_ACCURACY, metrics_for
from krscale.models.capacity import num_parameters
from krscale.models.tapped import device_of, logits_of
from krscale.parallel import Workers
from krscale.training.finite import require_finite
from krscale.training.loop import Training

NOT_HERE = frozenset(
    {
        *("global_batch_size", "num_workers", "max_workers"),
        *("device", "seed", "gpu_share_for_images"),
    }
)
"""Settings of a run's training that are determined by loaders and networks here."""

OnEpoch = Callable[[dict[str, float]], bool | None]


@dataclass(frozen=True)
class Distilled:
    """Result of a distillation.

    Attributes:
        student: The trained student in eval mode; a copy with averaged weights if `ema_decay` is
            set.
        accuracy: Accuracy of the student on validation after the last epoch.
        teacher_accuracy: Accuracy of the teacher on the same images (the first `max_images`).
        num_parameters: Number of parameters of the student.
        taps: Information gain of each of the teacher's taps; only of its classifier if it has no
            others.
        curve: Metrics of every epoch: `epoch`, `train/loss`, `val/accuracy`, ...
    """

    student: nn.Module
    accuracy: float
    teacher_accuracy: float
    num_parameters: int
    taps: tuple[Tap, ...]
    curve: tuple[dict[str, float], ...]

    def __str__(self) -> str:
        return (
            f"student of {self.num_parameters:,} parameters: {self.accuracy:.2%} of validation "
            f"right after {len(self.curve)} epochs; teacher: {self.teacher_accuracy:.2%}"
        )


@contextmanager
def _in_own_names() -> Iterator[None]:
    """Rename settings in errors to the arguments used here; a run has e.g. `train.optimizer`."""
    try:
        yield
    except UserError as error:
        text = _DOTTED.sub(r"\1", str(error))
        if text == str(error):
            raise
        where = "" if text.startswith("distill") else "distill: "
        raise reworded(error, f"{where}{text}") from error


_ARGUMENTS = (set(TrainConfig.model_fields) - NOT_HERE) | set(DistillConfig.model_fields)
_DOTTED = re.compile(rf"\b(?:train|distill)\.({'|'.join(sorted(_ARGUMENTS))})\b")


@_in_own_names()
def distill(
    *,
    teacher: nn.Module,
    student: nn.Module,
    data: tuple[Iterable[Any], Iterable[Any]],
    method: str = "kr",
    on_epoch: OnEpoch = lambda metrics: None,
    teacher_taps: Sequence[str] = (),
    student_taps: Sequence[str] = (),
    max_images: int = 20_000,
    allow_poor_teacher: bool = False,
    **settings: Any,
) -> Distilled:
    """Distil a teacher into a student, on the student's device.

    Args:
        teacher: A trained classifier. It is moved to the student's device and put into eval mode.
        student: The network to train, in place.
        data: Two loaders of `(images, labels)`, for training and validation, with images as both
            networks take them. Both must have a length and be readable repeatedly.
        method: A method that does not need the teacher's features: `kr`, `kd`, `dkd`, `kr+dkd`,
            `plain`, ...
        on_epoch: Called with the metrics of every epoch; returning True ends the training.
        teacher_taps: As in `KRLoss.from_networks`, as are the next three.
        student_taps: Module paths of the student's blocks. If the method does not read them, such
            as methods on logits, the student needs no taps.
        max_images: Maximum number of images to fit probes to, and to measure the teacher on.
        allow_poor_teacher: Continue even if the teacher's classifier is worse than a probe on one
            of its taps.
        **settings: Settings of the method (`granularity`, `sparsity`, ...) and of the training
            (`num_epochs`, `learning_rate`, `optimizer`, ...), as in `[distill]` and `[train]`.

    Raises:
        UserError: If anything does not fit together; raised before the training.
        NonFiniteError: If a term of the loss, or a metric of the student, is NaN or infinite.
    """
    if not callable(on_epoch):
        raise UserError(f"distill: on_epoch: a function is needed (got {on_epoch!r}).")
    if not torch.is_grad_enabled():
        mode = "inference_mode" if torch.is_inference_mode_enabled() else "no_grad"
        raise UserError(f"distill: the student is to be trained, and torch.{mode}() is on here.")
    training_settings, method_config = _settings(method, settings)
    train, val = check_loaders(data)
    loss = KRLoss.from_networks(
        teacher,
        student,
        train,
        val_loader=val,
        teacher_taps=teacher_taps,
        student_taps=student_taps,
        max_images=max_images,
        allow_poor_teacher=allow_poor_teacher,
        **_of_knowledge(method, method_config),
    )
    batches = TaughtBatches(train, loss, device_of(student))
    chosen = build_method(method, loss.context, method_config)
    learner = Learner(student, (), chosen)
    learner.tapped = _Tapped(student, *chosen.reads(loss.student_paths, loss.student_stage_paths))
    own = training_settings.model_copy(update={"global_batch_size": batches.batch_size})
    workers = Workers.alone(batches.device)
    with _explained_by_loader():
        training = Training(learner, batches, None, own, workers)
        curve = _train(training, val, loss, on_epoch)
    return Distilled(
        student=training.student.eval(),
        accuracy=curve[-1][VAL_ACCURACY],
        teacher_accuracy=loss.taps[-1].accuracy,
        num_parameters=num_parameters(student),
        taps=loss.taps,
        curve=curve,
    )


def _train(
    training: Training, val: Iterable[Any], loss: KRLoss, on_epoch: OnEpoch
) -> tuple[dict[str, float], ...]:
    """Train until the end or until `on_epoch` returns True; return the metrics of every epoch."""
    curve: list[dict[str, float]] = []
    while not training.finished:
        metrics = training.run_epoch()
        found = _evaluate(training.student, val, loss)
        require_finite(found, len(curve) + 1)
        curve.append(metrics | found)
        if on_epoch(curve[-1]):
            break
    return tuple(curve)


@contextmanager
def _explained_by_loader() -> Iterator[None]:
    """Blame the loader if a norm gets a single value, since it alone determines the batches."""
    try:
        yield
    except SingleValueError:
        raise UserError(
            "distill: data[0]: a batch of one image, or a part of one (gradient_accumulation), "
            "gives a norm of the student a single value per channel, which has no variance. Use "
            "larger batches, and leave out a last one of a single image: DataLoader(..., "
            "drop_last=True)."
        ) from None


class _Tapped(TappedModel):
    """A student whose logits are extracted from its output."""

    def forward(self, images: Tensor, read: bool = True) -> TapOutputs:
        outputs = super().forward(images, read)
        return TapOutputs(logits_of(outputs.logits), outputs.features, outputs.stages)


def _of_knowledge(method: str, settings: DistillConfig) -> dict[str, Any]:
    """Return the settings that determine what is read from teacher and student."""
    if "kr_weight" in method_settings(method):
        names = ("granularity", "parameter_weight", "probe_grid", "where_weight")
        return {name: getattr(settings, name) for name in names}
    little = {"probe_grid": 1, "where_weight": 0.0}
    # The teacher's taps are still measured if they are found, to detect a poor teacher.
    return little if reads_taps(method) else little | {"granularity": 1, "kr_weight": 0.0}


def _settings(method: str, given: Mapping[str, Any]) -> tuple[TrainConfig, DistillConfig]:
    kind, _ = parse_method(method, "distill: method")
    if kind.feature_kinds:
        raise UserError(
            f"distill: method: {method!r} learns from features of the teacher, which are stored by "
            "a run (krscale tune, krscale distill); here a method on its taps or logits is needed."
        )
    of_training = set(TrainConfig.model_fields) - NOT_HERE
    own = {name.partition(".")[0] for name in method_settings(method)}
    for name in given:
        if name not in of_training | own:
            raise unknown_name("setting", name, of_training | own, f"distill, method {method}")
    chosen = {name: value for name, value in given.items() if name in own}
    rest = {name: value for name, value in given.items() if name in of_training}
    training = TrainConfig.from_keywords(rest, "distill")
    if "warmup_epochs" in rest:
        refuse_long_warmup(training, "distill")
    return training, DistillConfig.from_keywords({"method": method, **chosen}, "distill")


def _evaluate(student: nn.Module, loader: Iterable[Any], loss: KRLoss) -> dict[str, float]:
    """Return every metric of the student on a loader, as `val/NAME`."""
    device = device_of(student)
    metrics = metrics_for(loss.context.num_classes)
    totals = torch.zeros(len(metrics) + 1, dtype=torch.float64)
    with evaluating(student):
        for batch in loader:
            images, labels = checked_pair(batch, loss, "data[1]")
            if not len(labels):
                continue
            logits = logits_of(student(images.to(device))).float().cpu()
            sums = [float(metric.total(logits, labels.long().cpu())) for metric in metrics]
            totals += torch.tensor([*sums, float(len(labels))], dtype=torch.float64)
    *sums, count = totals.tolist()
    if not count:
        raise UserError(ran_dry("data[1]"))
    return {f"val/{m.name}": total / count for m, total in zip(metrics, sums, strict=True)}
