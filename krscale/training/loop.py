"""The only training loop. It imports neither methods nor Ray: a learner, batches, and a schedule.

A `Training` advances epoch by epoch, so that its caller (a Tune trial, a Train worker, the
teacher's own training) decides what happens between epochs: report, save, stop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from krscale.batch_norm import (
    SharedBatchNorm,
    check_batch_norm,
    convert_batch_norm,
    explain_single_values,
)
from krscale.config import TrainConfig
from krscale.config.training import NO_CHANNELS_LAST_ON_CPU
from krscale.data import Dataset, Split
from krscale.errors import UserError
from krscale.methods.batch import Batch
from krscale.methods.learner import Learner, LearnerOutput
from krscale.metrics import metrics_for
from krscale.models.preprocessing import Preprocessing, preprocessing_of_network
from krscale.parallel import (
    Workers,
    draw_own_numbers,
    num_parts_of,
    share_of,
    sum_over_workers,
)
from krscale.training.averaging import AveragedStudent
from krscale.training.checkpoint import load_checkpoint, save_checkpoint
from krscale.training.epoch_sums import EpochSums
from krscale.training.finite import require_finite, require_finite_outputs
from krscale.training.first_step import has_gradient, require_dependence, require_trainable
from krscale.training.optimisers import (
    build_optimiser,
    learning_rate_factor,
    restore_optimiser,
)
from krscale.training.precision import resolve_precision

EVALUATION_BATCH_SIZE = 1024


class Batches(Protocol):
    """What a training reads: a `Loader`, or anything with the same interface.

    Attributes:
        images: `[N, C, H, W]`; only their shape is read.
        preprocessing: Converts these to the input of the network.
        num_samples: Samples of an epoch.
        num_steps: Batches of an epoch.
    """

    images: Tensor
    preprocessing: Preprocessing
    num_samples: int
    num_steps: int

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, on the device."""


class Training:
    """One student (or teacher) in training: model, optimiser, schedule and current epoch.

    Args:
        learner: The student and its method; trained in place.
        loader: Batches of the training split, this worker's share of each.
        validation: Split that is evaluated after every epoch, and its dataset for the
            normalisation; None if there is none, because the student learns from that split, too.
        settings: Optimiser, schedule, precision.
        workers: This worker's rank among all of them.

    Attributes:
        on_step: Called after every step and every evaluated batch; does nothing by default.
    """

    def __init__(
        self,
        learner: Learner,
        loader: Batches,
        validation: tuple[Dataset, Split] | None,
        settings: TrainConfig,
        workers: Workers,
    ) -> None:
        require_trainable(learner.student)
        shape = loader.preprocessing.input_shape(loader.images.shape[1:])
        check_batch_norm(
            learner.student, shape, settings.batch_sizes(loader.num_samples), "the network"
        )
        self.settings = settings
        self.workers = workers
        self.loader = loader
        self.validation = validation
        self.epoch = 0
        self.on_step: Callable[[], None] = _pass_over
        self.seconds_in_steps = 0.0
        self.precision = resolve_precision(settings.precision, workers)
        self.learner = convert_batch_norm(learner, workers).to(workers.device)
        if settings.channels_last:
            if workers.device.type == "cpu":  # `auto` found no GPU
                raise UserError(f"train.channels_last: {NO_CHANNELS_LAST_ON_CPU}.")
            self.learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward: nn.Module = self.learner
        if settings.compile:
            self.learner.compile()
        if workers.world_size > 1:
            self.forward = DistributedDataParallel(self.learner)
        self.optimiser = build_optimiser(self.learner, settings)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, learning_rate_factor(settings, loader.num_steps)
        )
        self.average: AveragedStudent | None = None
        if settings.ema_decay > 0.0:
            self.average = AveragedStudent(self.learner.student, settings.ema_decay)

    @property
    def student(self) -> nn.Module:
        """The bare student, without heads or wrappers; averaged if `train.ema_decay` is above 0."""
        return self.learner.student if self.average is None else self.average.model

    @property
    def finished(self) -> bool:
        """Whether every epoch has been run."""
        return self.epoch >= self.settings.num_epochs

    def run_epoch(self) -> dict[str, float]:
        """Train one epoch and evaluate on the validation split.

        Returns:
            Metrics over all workers: `train/<term>` and `train/loss` (means over samples),
            `train/accuracy`, `val/<metric>` for every metric (`krscale/metrics.py`), the method's
            diagnostics, and `epoch`. If `train.precision` is `auto`, also `train/bf16`: 1 if the
            epoch ran in bf16.

        Raises:
            NonFiniteError: If a loss term became NaN or infinite (names the earliest one), or if
                the trained network gives NaN or infinity on the validation split.
            NoGradientError: If the first step has no gradient.
        """
        started = time.perf_counter()
        self.forward.train()
        self.learner.method.begin_epoch(self.epoch / max(1, self.settings.num_epochs - 1))
        draw_own_numbers(self.settings.seed, self.epoch, self.workers.rank)
        sums = EpochSums(self.workers.device)
        for batch in self.loader.epoch(self.epoch):
            self.learner.method.begin_step(self.schedule.last_epoch)
            output, terms = self._step(batch)
            sums.add(terms, output, batch)
            if self.schedule.last_epoch == 1:
                sums.has_gradient = has_gradient(self.learner.student)
            self.on_step()
        metrics = sums.metrics(self.epoch, self.loader.num_steps)
        self.seconds_in_steps += time.perf_counter() - started
        self.epoch += 1
        metrics |= self._validate()
        if self.settings.precision == "auto":
            metrics["train/bf16"] = float(self.precision == "bf16")
        metrics["epoch"] = float(self.epoch)
        return metrics

    def rehearse(self) -> None:
        """Take two steps and evaluate one batch, so that memory peaks as in a whole training.

        Two steps are needed because the optimiser has no momentum before the second. The weights
        change, so the training must be discarded afterwards.
        """
        self.forward.train()
        self.learner.method.begin_epoch(0.0)
        for epoch in range(2):
            self._step(next(self.loader.epoch(epoch)))
        if self.validation is not None:
            dataset, split = self.validation
            images, labels = split.images, split.labels
            first = Split(images[:EVALUATION_BATCH_SIZE], labels[:EVALUATION_BATCH_SIZE])
            with self._autocast():
                evaluate(self.student, dataset, first, self.workers)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a restart needs: weights, optimiser, schedule, epoch, RNG."""
        average = {} if self.average is None else {"average": self.average.state_dict()}
        return {
            **average,
            "learner": self.learner.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "epoch": self.epoch,
            "rng": torch.get_rng_state(),
            **_device_rng(self.workers.device),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.learner.load_state_dict(state["learner"])
        restore_optimiser(self.optimiser, state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.epoch = int(state["epoch"])
        torch.set_rng_state(state["rng"])
        # States of older versions, or written on a machine without a GPU, do not have it.
        if self.workers.device.type == "cuda" and "device_rng" in state:
            torch.cuda.set_rng_state(state["device_rng"].cpu(), self.workers.device)

    def _step(self, batch: Batch) -> tuple[LearnerOutput, Tensor]:
        """Train on one batch; return the learner's output, and its terms `[M, B]`, detached."""
        if self.settings.channels_last:
            images = batch.images.contiguous(memory_format=torch.channels_last)
            batch = replace(batch, images=images)
        self.optimiser.zero_grad(set_to_none=True)
        parts = self._parts(batch)
        outputs = [self._backward(part, last=part is parts[-1]) for part in parts]
        for weight in self.learner.method.untaught_weights():
            # DistributedDataParallel gives a gradient of 0, with which momentum and decay would
            # move the weight; on one worker there is none.
            weight.grad = None
        if self.settings.max_grad_norm > 0.0:
            # Gradients are already those of the global batch, equal on all workers.
            nn.utils.clip_grad_norm_(self.learner.parameters(), self.settings.max_grad_norm)
        self.optimiser.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update(self.learner.student)
        output = LearnerOutput.joined(outputs)
        return output, torch.stack(list(output.terms.values()))

    def _parts(self, batch: Batch) -> list[Batch]:
        """Divide this worker's share of a batch into the parts that are computed in turn."""
        wanted = self.settings.gradient_accumulation
        number = num_parts_of(batch.global_size, self.workers.world_size, wanted)
        if number == 1:
            return [batch]
        size = len(batch.labels)
        return [batch.rows(*share_of(size, part, number)) for part in range(number)]

    def _backward(self, batch: Batch, *, last: bool) -> LearnerOutput:
        """Add the gradients of one part of a batch; return the learner's output for it."""
        with nullcontext() if last else self._without_exchange():
            with self._autocast(), explain_single_values(len(batch.labels), batch.global_size):
                output: LearnerOutput = self.forward(batch)
            terms = torch.stack(list(output.terms.values()))
            # DistributedDataParallel averages gradients over workers; every sample must have the
            # weight 1 / global_size, whatever share of the batch its worker holds.
            loss = terms.sum() * (self.workers.world_size / batch.global_size)
            require_dependence(loss)
            torch.autograd.backward(loss)
        return output.detached()

    def _without_exchange(self) -> AbstractContextManager[object]:
        """Return a context without gradient exchange; the last part exchanges the sum of all."""
        if isinstance(self.forward, DistributedDataParallel):
            return self.forward.no_sync()
        return nullcontext()

    def _autocast(self) -> torch.autocast:
        enabled = self.precision == "bf16"
        return torch.autocast(self.workers.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _validate(self) -> dict[str, float]:
        if self.validation is None:
            if self.finished:
                part = self._parts(next(self.loader.epoch(self.epoch - 1)))[0]
                with self._autocast():
                    require_finite_outputs(self.student, part.images, self.epoch)
            return {}
        dataset, split = self.validation
        with self._autocast():
            found = evaluate(self.student, dataset, split, self.workers, self.on_step)
        metrics = {f"val/{name}": value for name, value in found.items()}
        require_finite(metrics, self.epoch)
        return metrics


def _device_rng(device: torch.device) -> dict[str, Tensor]:
    """Return the state of a GPU's random generator (used by its dropout); empty for a CPU."""
    if device.type != "cuda":
        return {}
    return {"device_rng": torch.cuda.get_rng_state(device)}


def _pass_over() -> None:
    """Do nothing."""


def fit(
    training: Training, on_epoch: Callable[[dict[str, float]], bool | None]
) -> dict[str, float]:
    """Run the remaining epochs; stop early when `on_epoch` returns True.

    Returns:
        The metrics of the last epoch that was run; empty if none remained.
    """
    metrics: dict[str, float] = {}
    while not training.finished:
        metrics = training.run_epoch()
        if on_epoch(metrics):
            break
    return metrics


def fit_or_continue(
    training: Training, path: Path, on_epoch: Callable[[dict[str, float]], None]
) -> dict[str, float]:
    """Run all epochs, saving each as the checkpoint `path`; resume from it after an interruption.

    Args:
        training: The training, with its remaining epochs.
        path: Folder of the checkpoint.
        on_epoch: Called with the metrics of every epoch. On resuming, it is called again with those
            of the checkpoint, since the process may have ended before its previous call.

    Returns:
        The metrics of the last epoch.
    """
    metrics: dict[str, float] = {}
    if path.exists():
        state = load_checkpoint(path)
        training.load_state_dict(state["training"])
        metrics = state["metrics"]
        on_epoch(metrics)

    def keep(metrics: dict[str, float]) -> None:
        save_checkpoint(path, {"training": training.state_dict(), "metrics": metrics})
        on_epoch(metrics)

    return fit(training, keep) or metrics


def _rows_to_judge(model: nn.Module, num_samples: int, workers: Workers) -> Iterator[slice]:
    """Yield the batches of this worker's share of a split.

    If a norm uses the statistics of all workers in evaluation, too, every worker gets as many
    batches as the one with the largest share; its last batch may then be empty.
    """
    start, stop = share_of(num_samples, workers.rank, workers.world_size)
    end = stop
    if any(isinstance(m, SharedBatchNorm) and m.running_mean is None for m in model.modules()):
        first, last = share_of(num_samples, 0, workers.world_size)
        end = start + last - first
    for first in range(start, end, EVALUATION_BATCH_SIZE):
        yield slice(min(first, stop), min(first + EVALUATION_BATCH_SIZE, stop))


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    split: Split,
    workers: Workers,
    on_batch: Callable[[], None] = _pass_over,
) -> dict[str, float]:
    """Return every metric (`krscale/metrics.py`) of a model on a split, over all workers.

    Each is a mean over the samples, under its name. Images are prepared as the model takes them.
    The model's mode (train or eval) is restored.
    """
    was_training = model.training
    model.eval()
    metrics, prepared = metrics_for(dataset.num_classes), preprocessing_of_network(model)
    totals = torch.zeros(len(metrics) + 1, dtype=torch.float64, device=workers.device)
    for rows in _rows_to_judge(model, len(split.labels), workers):
        pixels = torch.tensor(split.images[rows], device=workers.device)
        labels = torch.tensor(split.labels[rows], device=workers.device)
        logits = model(prepared.apply(pixels, dataset.mean, dataset.std)).float()
        for position, metric in enumerate(metrics):
            totals[position] += metric.total(logits, labels)
        totals[-1] += len(labels)
        on_batch()
    model.train(was_training)
    *sums, count = sum_over_workers(totals).tolist()
    return {metric.name: total / count for metric, total in zip(metrics, sums, strict=True)}
