"""A student and its method in one module, and the output of one training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from krscale.errors import KrscaleError
from krscale.knowledge.taps import TappedModel
from krscale.methods.base import Method
from krscale.methods.batch import Batch


class LearnerOutput(NamedTuple):
    """The output of one training step.

    Attributes:
        terms: Weighted loss terms `{name: [B]}` fp32; the loss is the sum of all of them, divided
            by `Batch.global_size`.
        logits: `[B, K]` fp32, the student's.
        diagnostics: Scalars worth logging, without gradient.
    """

    terms: dict[str, Tensor]
    logits: Tensor
    diagnostics: dict[str, Tensor]

    def detached(self) -> LearnerOutput:
        """Return it without gradient, so that its graph can be freed."""
        return LearnerOutput(
            {name: term.detach() for name, term in self.terms.items()},
            self.logits.detach(),
            {name: value.detach() for name, value in self.diagnostics.items()},
        )

    @classmethod
    def joined(cls, parts: Sequence[LearnerOutput]) -> LearnerOutput:
        """Return the output of a batch from the outputs of its parts, in order.

        Diagnostics are averaged over the parts, weighted by their numbers of samples.
        """
        first = parts[0]
        if len(parts) == 1:
            return first
        sizes = [len(part.logits) for part in parts]
        shares = [size / max(1, sum(sizes)) for size in sizes]
        return cls(
            {name: torch.cat([part.terms[name] for part in parts]) for name in first.terms},
            torch.cat([part.logits for part in parts]),
            {
                name: torch.stack(
                    [
                        share * part.diagnostics[name]
                        for share, part in zip(shares, parts, strict=True)
                    ]
                ).sum(dim=0)
                for name in first.diagnostics
            },
        )


class Learner(nn.Module):
    """A student and its method, in one module.

    They share a module because data-parallel training needs every trainable part, the student's and
    the method's, in one forward.

    Args:
        student: The network that will be exported.
        tap_paths: Module paths of the student's taps, in depth order.
        method: The method, with its own trainable parts.
        stage_paths: Module paths of the stages that the method reads in addition to the taps.
    """

    def __init__(
        self,
        student: nn.Module,
        tap_paths: Sequence[str],
        method: Method,
        stage_paths: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.tapped = TappedModel(student, tap_paths, stage_paths)
        self.method = method

    @property
    def student(self) -> nn.Module:
        """The student alone."""
        return self.tapped.model

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Compile it as torch does; its blocks are read in every step from then on.

        torch.compile would use code of a step without blocks in steps that need them.
        """
        super().compile(*arguments, **options)
        self.tapped.is_compiled = True

    def forward(self, batch: Batch) -> LearnerOutput:
        """Return the method's terms for `batch`; losses are computed without autocast."""
        if batch.mixture is not None and not self.method.takes_mixed_labels:
            raise KrscaleError(
                "this method needs one class for every image, but the images of the batch are made "
                "of two; build the loader without views.mixup and views.cutmix"
            )
        outputs = self.tapped(batch.images, self.method.reads_blocks)
        with torch.autocast(outputs.logits.device.type, enabled=False):
            terms = self.method(outputs, batch)
        return LearnerOutput(terms, outputs.logits.float(), self.method.diagnostics())
