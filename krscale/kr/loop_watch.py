"""Warnings of a `KRLoss` about steps that a training loop leaves out without any error."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from krscale.methods.kr import KR

_LOG = logging.getLogger(__name__)
_LOSSES_UNTIL_HEADS_MOVE = 100
"""After so many losses, an optimiser has stepped even if it sums the gradients of many batches."""
_AVERAGING = frozenset(
    {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine"}
)
"""Classes of networks that give all workers the same gradients."""


class LoopWatch:
    """Detects steps that a training loop easily leaves out, and logs one warning for each.

    Leaving them out changes the training but raises no error.
    """

    def __init__(self) -> None:
        self.told_of_epochs = False
        self._told_of_frozen = False
        self._num_losses = 0
        self._watched = -1
        self._head_at_first = torch.zeros(0)
        self._apart: tuple[str, ...] = ()

    def on_run(self, method: KR, student: nn.Module) -> None:
        """Inspect a student that is about to be run, and any wrapper around it.

        Args:
            method: The method whose heads are to be trained.
            student: The student as the caller uses it, with its wrappers.
        """
        if not torch.compiler.is_compiling() and not self._num_losses:
            self._apart = _not_averaged(method, student)

    def on_loss(self, method: KR, logits: Tensor) -> None:
        """Inspect a loss that is about to be computed.

        Args:
            method: The method whose heads are to be trained.
            logits: The student's logits; without a gradient, nothing is being trained.
        """
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        if not logits.requires_grad:
            if not self._told_of_frozen:
                self._told_of_frozen = True
                _LOG.warning(
                    "KRLoss: the student's logits have no gradient, so it learns nothing: all of "
                    "its weights are frozen, or it was run under torch.no_grad()."
                )
            return
        self._num_losses += 1
        if self._num_losses == 1:
            if method.teaches_heads:  # some heads may not be taught, such as the last
                self._watched = int(method.group_weights[:-1].argmax())
                self._head_at_first = self._head(method).clone()
            if not self.told_of_epochs:
                _warn_of_schedules(method)
            if self._apart:
                _warn_of_workers(self._apart)
        if self._num_losses == _LOSSES_UNTIL_HEADS_MOVE and self._stands_still(method):
            _LOG.warning(
                "KRLoss: its auxiliary heads have not changed in %d steps, so the student is "
                "fitted to heads that were never trained. Give the optimiser *kr.parameters() as "
                "well, or choose granularity=1, which has none.",
                self._num_losses,
            )

    def _stands_still(self, method: KR) -> bool:
        if not self._head_at_first.numel() or not method.teaches_heads:
            return False
        return torch.equal(self._head(method), self._head_at_first)

    def _head(self, method: KR) -> Tensor:
        # FSDP keeps the weights of many layers in one tensor, so that a head then has none.
        weights = list(method.heads[self._watched].parameters())
        return weights[-1].detach().cpu() if weights else torch.zeros(0)


def _not_averaged(method: KR, student: nn.Module) -> tuple[str, ...]:
    """Return the parts that every worker would train separately, as no gradients are averaged.

    A wrapper around both student and loss can be detected only while it runs.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return ()
    around: nn.Module | None = getattr(DistributedDataParallel, "_active_ddp_module", None)
    held = set() if around is None else {id(weight) for weight in around.parameters()}
    parts = {"the student": student, "its auxiliary heads": method.heads}
    apart = {
        name: part
        for name, part in parts.items()
        if any(weight.requires_grad and id(weight) not in held for weight in part.parameters())
    }
    kinds = {kind.__name__ for part in student.modules() for kind in type(part).__mro__}
    if _AVERAGING & kinds:
        apart.pop("the student", None)
    if not method.teaches_heads:
        apart.pop("its auxiliary heads", None)
    return tuple(apart)


def _warn_of_workers(apart: Sequence[str]) -> None:
    """Warn of parts that the workers train separately, so that they differ between workers."""
    _LOG.warning(
        "KRLoss: there are %d workers, and no DistributedDataParallel averages the gradients of "
        "%s, so that each worker trains its own. Wrap the student before KRLoss.from_networks and "
        "the loss after it, and call the wrapped loss; unless your loop averages them itself, or "
        "what is around both does (FSDP, DeepSpeed).",
        dist.get_world_size(),
        " and ".join(apart),
    )


def _warn_of_schedules(method: KR) -> None:
    """Warn of settings that change over the training when `begin_epoch` was never called."""
    settings = method.settings
    has_effect = {
        "auxiliary_schedule": len(method.heads) > 0 and settings.auxiliary_weight > 0.0,
        "where_schedule": method.where is not None,
        "sparsity_schedule": settings.sparsity > 0.0,
    }
    given = {name: getattr(settings, name) for name, has in has_effect.items() if has}
    changing = [f"{name}={value!r}" for name, value in given.items() if value != "constant"]
    if changing:
        _LOG.warning(
            "KRLoss: %s: what changes over the training stays as in its first epoch. Before every "
            "epoch call kr.begin_epoch(epoch / max(1, num_epochs - 1)), or choose 'constant'.",
            ", ".join(changing),
        )
