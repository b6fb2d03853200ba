"""A learner that runs the teacher in every step, as other libraries do."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from krscale.methods.batch import Batch
from krscale.methods.learner import Learner, LearnerOutput
from krscale.setup.teacher import LoadedTeacher


class Online(nn.Module):
    """Wraps a learner so that its batches contain the teacher's logits of the same step.

    Args:
        learner: The student and its method.
        teacher: Run in every step.
        last_tap_only: Whether to read only the teacher's own logits, as KD needs no more.
    """

    def __init__(self, learner: Learner, teacher: LoadedTeacher, *, last_tap_only: bool) -> None:
        super().__init__()
        self.learner = learner
        self.last_tap_only = last_tap_only
        # In a tuple, so that the student's `train()` does not affect it.
        self.teacher = (teacher.tapped.eval(), teacher.probes.eval())

    def forward(self, batch: Batch) -> LearnerOutput:
        """Run the teacher, then the learner."""
        tapped, probes = self.teacher
        with torch.no_grad():
            if self.last_tap_only:
                tap_logits = tapped.model(batch.images)[:, None].float()
            else:
                tap_logits = probes(tapped(batch.images))
        output: LearnerOutput = self.learner(replace(batch, tap_logits=tap_logits))
        return output
