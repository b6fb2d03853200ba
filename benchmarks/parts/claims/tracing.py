"""Residual tracing of trained students: how far a student is from its teacher, by relative depth.

The residual that the paper says accumulates in the deeper layers (claim C1) is measured as a
divergence between the distributions of the two networks at the same relative depth. This analysis
is separate from training, so the teacher may run.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from krscale.config import Experiment
from krscale.data import open_data
from krscale.errors import KrscaleError
from krscale.knowledge.aggregation import student_tap
from krscale.knowledge.taps import TappedModel
from krscale.setup.kept_probes import probe_grid
from krscale.setup.network_builder import resolve_taps
from krscale.setup.prepare import Prepared
from krscale.setup.tap_reading import fit_probes, read_logits
from krscale.setup.teacher import open_teacher


def validation_knowledge(experiment: Experiment, prepared: Prepared) -> Tensor:
    """Return the teacher's logits at its taps for the validation images, `[N, D, K]` fp32.

    They are read without augmentation by the probes of its store. They depend only on the teacher:
    compute them once and pass them to `trace_residual` for every student.
    """
    dataset = open_data(Path(prepared.data_path))
    teacher = open_teacher(experiment, dataset, Path(prepared.teacher_path))
    device = next(teacher.tapped.parameters()).device
    return read_logits(teacher.tapped, teacher.probes, dataset, "val", device)


def trace_residual(
    experiment: Experiment,
    prepared: Prepared,
    student: nn.Module,
    knowledge: Tensor | None = None,
    temperature: float = 1.0,
) -> dict[float, float]:
    """Return `{relative depth: mean KL(teacher || student)}` in nats, on validation.

    At every depth both networks are read the same way, regardless of the student's method: by
    linear probes that are fitted on the training split to the frozen network's own taps, on the
    experiment's grid, and at depth 1 by their classifiers.

    Args:
        experiment: Teacher, and `student.taps`.
        prepared: Paths of data and teacher.
        student: A trained student without heads; it stays unchanged, on its device.
        knowledge: Result of `validation_knowledge`; None runs the teacher now.
        temperature: Temperature of the compared distributions.
    """
    dataset = open_data(Path(prepared.data_path))
    if knowledge is None:
        knowledge = validation_knowledge(experiment, prepared)
    taps, _ = resolve_taps(student, experiment.any_student.taps, "student.taps")
    was_training = student.training
    tapped = TappedModel(student, taps).eval()
    device = next(student.parameters()).device
    probes = fit_probes(tapped, dataset, device, probe_grid(experiment))
    logits = read_logits(tapped, probes, dataset, "val", device)
    student.train(was_training)
    return residual_by_depth(knowledge.to(device), logits, temperature)


def residual_by_depth(
    teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0
) -> dict[float, float]:
    """Return `{d / D: mean KL(teacher's tap d || student's tap at that depth)}` in nats.

    The student's tap is the one to which a head of KR would be attached, `ceil(d * D_student / D)`;
    at depth 1 both classifiers are compared.

    Args:
        teacher_logits: `[N, D, K]`, the teacher's logits at its taps, in depth order.
        student_logits: `[N, D_student, K]`, the student's logits for the same samples.
        temperature: Temperature of both distributions.

    Raises:
        KrscaleError: If the two do not have the same samples and classes.
    """
    num_taps, num_student_taps = teacher_logits.shape[1], student_logits.shape[1]
    if teacher_logits[:, 0].shape != student_logits[:, 0].shape:
        raise KrscaleError(
            f"teacher {tuple(teacher_logits.shape)} and student {tuple(student_logits.shape)} do "
            f"not have the same samples and classes"
        )
    taps = [student_tap(tap, num_taps, num_student_taps) - 1 for tap in range(1, num_taps + 1)]
    log_q = (teacher_logits.double() / temperature).log_softmax(dim=-1)
    log_p = (student_logits[:, taps].double() / temperature).log_softmax(dim=-1)
    divergence = (torch.special.xlogy(log_q.exp(), log_q.exp()) - log_q.exp() * log_p).sum(dim=-1)
    residuals = divergence.mean(dim=0).tolist()
    return {(tap + 1) / num_taps: residual for tap, residual in enumerate(residuals)}
