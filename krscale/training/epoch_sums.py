"""Sums over an epoch: its metrics, and the first loss term that was not finite."""

from __future__ import annotations

import math
from typing import NoReturn

import torch
from torch import Tensor

from krscale.errors import NonFiniteError
from krscale.methods.batch import UNLABELLED, Batch
from krscale.methods.learner import LearnerOutput
from krscale.metrics import ACCURACY, TRAIN_ACCURACY, TRAIN_LOSS
from krscale.parallel import sum_over_workers
from krscale.training.finite import ADVICE
from krscale.training.first_step import require_gradient


class EpochSums:
    """Sums of an epoch kept on the device, so that no step waits for the host.

    Args:
        device: Where the steps run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: list[str] = []
        self.terms = torch.zeros(0)
        self.counts = torch.zeros(3, dtype=torch.float64, device=device)
        self.diagnostics: dict[str, Tensor] = {}
        self.first_bad = torch.zeros(0)
        self.has_gradient = torch.ones((), device=device)  # result of the training's first step
        self.step = 0

    def add(self, terms: Tensor, output: LearnerOutput, batch: Batch) -> None:
        """Add one batch and the learner's output for it, with its terms as one tensor `[M, B]`."""
        sums = terms.sum(dim=1, dtype=torch.float64)
        if self.step == 0:
            self.names = list(output.terms)
            self.terms = torch.zeros_like(sums)
            self.first_bad = torch.full_like(sums, math.inf)
        self.terms += sums
        # Once one term is not finite, the weights break all others; the earliest is the cause.
        bad = torch.where(torch.isfinite(sums), math.inf, float(self.step))
        self.first_bad = torch.minimum(self.first_bad, bad)
        self.counts[0] += _correct(output.logits.detach(), batch)
        self.counts[1] += (batch.labels != UNLABELLED).sum()
        self.counts[2] += len(batch.labels)
        share = len(batch.labels) / batch.global_size  # this worker's share
        for name, value in output.diagnostics.items():
            of_share = value.detach().double() * share
            self.diagnostics[name] = self.diagnostics.get(name, 0.0) + of_share
        self.step += 1

    def metrics(self, epoch: int, num_steps: int) -> dict[str, float]:
        """Reduce over workers and return means; the only synchronisation of the epoch.

        Raises:
            NonFiniteError: If a term became NaN or infinite; names the earliest one and its step.
            NoGradientError: If the first step of the training had no gradient.
        """
        diagnostics = [v.reshape(1) for _, v in sorted(self.diagnostics.items())]
        gradient = self.has_gradient.to(self.counts).reshape(1)
        packed = torch.cat([self.terms, self.counts, gradient, *diagnostics])
        values = sum_over_workers(packed).tolist()
        num_terms = len(self.names)
        # Checks use the sums over workers, so that all workers raise together.
        if not all(map(math.isfinite, values[:num_terms])):
            self._raise_non_finite(values[:num_terms], epoch, num_steps)
        correct, num_labelled, count, moved = values[num_terms : num_terms + 4]
        require_gradient(moved=moved > 0.0)
        metrics = {f"train/{n}": v / count for n, v in zip(self.names, values, strict=False)}
        metrics[TRAIN_LOSS] = sum(values[:num_terms]) / count
        metrics[TRAIN_ACCURACY] = correct / max(num_labelled, 1.0)
        rest = values[num_terms + 4 :]
        for name, value in zip(sorted(self.diagnostics), rest, strict=True):
            metrics[name] = value / self.step
        return metrics

    def _raise_non_finite(self, values: list[float], epoch: int, num_steps: int) -> NoReturn:
        first_bad = self.first_bad.tolist()
        step = min(first_bad)
        if step < math.inf:
            name, where = self.names[first_bad.index(step)], f"step {int(step) + 1} of {num_steps}"
        else:
            bad = next(i for i, value in enumerate(values) if not math.isfinite(value))
            name, where = self.names[bad], "on another worker"
        raise NonFiniteError(
            f"loss term {name!r} is not finite in epoch {epoch + 1}, {where}. {ADVICE}"
        )


def _correct(logits: Tensor, batch: Batch) -> Tensor:
    """Return the number of correct predictions; for mixed images, the weights of found labels."""
    if batch.mixture is None:
        return ACCURACY.total(logits, batch.labels)
    found = logits.argmax(dim=1)
    own, weights = found == batch.labels, batch.mixture.weights
    return (own * weights + (found == batch.mixture.labels) * (1.0 - weights)).sum()
