"""Residual tracing of trained students: an analysis beside training, where the teacher may run."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from krscale.config import Experiment
from krscale.data import open_data
from krscale.knowledge.residual import residual_by_depth
from krscale.knowledge.taps import TappedModel
from krscale.setup.kept_probes import probe_grid
from krscale.setup.network_builder import resolve_taps
from krscale.setup.prepare import Prepared
from krscale.setup.tap_reading import fit_probes, read_logits
from krscale.setup.teacher import open_teacher


def validation_knowledge(experiment: Experiment, prepared: Prepared) -> Tensor:
    """Return the teacher's logits at its taps for the validation images, `[N, D, K]` fp32.

    Without augmentation, by the probes of its store. It depends on the teacher alone: compute it
    once and hand it to `trace_residual` for every student.
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

    At every depth both networks are read the same way: by linear probes that are fitted on the
    training split to the frozen network's own taps, on the experiment's grid, whatever the student
    learned by, and at depth 1 by their classifiers.

    Args:
        experiment: Teacher, and `student.taps`.
        prepared: Where data and teacher are.
        student: A trained student without heads; left as it was, on its device.
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
