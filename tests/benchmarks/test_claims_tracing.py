"""Residual tracing of whole networks: the teacher and students alike, and none is changed."""

from pathlib import Path

import pytest
import torch
from parts.claims.tracing import trace_residual, validation_knowledge

from krscale.config import Experiment, load
from krscale.data import open_data
from krscale.parallel import Workers
from krscale.progress import Progress
from krscale.setup.build import Assets, build_training
from krscale.setup.prepare import Prepared, prepare
from krscale.setup.teacher import open_teacher
from krscale.training.loop import fit

SETTINGS = (
    "teacher.width=8", "teacher.num_epochs=1", "views.num_views=1", "distill.probe_grid=2",
    "train.num_epochs=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Prepared]:
    folder = tmp_path_factory.mktemp("residual")
    experiment = load(None, [*SETTINGS, f"storage_path={folder}", "distill.method=kd"])
    with Progress(quiet=True, planned={}) as progress:
        return experiment, prepare(experiment, progress)


def test_the_teacher_has_no_residual_to_itself(prepared: tuple[Experiment, Prepared]) -> None:
    experiment, facts = prepared
    dataset = open_data(Path(facts.data_path))
    teacher = open_teacher(experiment, dataset, Path(facts.teacher_path)).tapped.model
    found = trace_residual(experiment, facts, teacher)
    assert list(found) == pytest.approx([d / 6 for d in range(1, 7)])
    assert max(found.values()) < 1e-6  # its probes are fitted again, with the same result


def test_a_student_gets_nearer_by_learning(prepared: tuple[Experiment, Prepared]) -> None:
    experiment, facts = prepared
    training = build_training(experiment, Assets.open(facts), 4, Workers.alone())
    training.student.train()
    before = {name: tensor.clone() for name, tensor in training.student.state_dict().items()}
    knowledge = validation_knowledge(experiment, facts)
    start = trace_residual(experiment, facts, training.student, knowledge)
    assert training.student.training
    assert all(torch.equal(before[n], t) for n, t in training.student.state_dict().items())
    fit(training, lambda metrics: None)
    end = trace_residual(experiment, facts, training.student, knowledge)
    assert end == trace_residual(experiment, facts, training.student)
    assert 0.0 < end[1.0] < start[1.0]
