"""From a config to a training: where the gains come from, and which term is not finite."""

import resource
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from krscale.config import Experiment, load, with_values
from krscale.data import open_data
from krscale.errors import DiskFullError, NonFiniteError
from krscale.knowledge.probes import information_gain
from krscale.parallel import Workers
from krscale.progress import Progress
from krscale.setup.build import Assets, build_training
from krscale.setup.prepare import Prepared, prepare
from krscale.setup.tap_reading import read_logits
from krscale.setup.teacher import open_teacher, prepare_teacher
from krscale.training.loop import Training

SETTINGS = (
    "teacher.width=4",
    "teacher.num_epochs=2",
    "views.num_views=1",
    "distill.method=kr+dkd+kd",
    "distill.parameter_weight=0.1",
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Prepared]:
    folder = tmp_path_factory.mktemp("assemble")
    experiment = load(None, [*SETTINGS, f"storage_path={folder}"])
    with Progress(quiet=True, planned={}) as progress:
        return experiment, prepare(experiment, progress)


def test_information_gain_is_that_of_held_out_images(prepared: tuple[Experiment, Prepared]) -> None:
    experiment, facts = prepared
    dataset = open_data(Path(facts.data_path))
    teacher = open_teacher(experiment, dataset, Path(facts.teacher_path))
    gains = {}
    for split in ("train", "val"):
        said = read_logits(teacher.tapped, teacher.probes, dataset, split, torch.device("cpu"))
        gains[split] = information_gain(said, torch.tensor(dataset.split(split).labels)).tolist()
    assert facts.teacher.information_gain == pytest.approx(gains["val"], abs=1e-4)
    assert facts.teacher.information_gain != pytest.approx(gains["train"], abs=1e-4)


def spoil_head(training: Training) -> None:
    with torch.no_grad():
        training.learner.method.get_submodule("heads.0").weight[0, 0] = torch.nan


def spoil_posterior(training: Training) -> None:
    training.learner.method.get_submodule("posterior.1").term_weight = float("nan")


def spoil_parameter_source(training: Training) -> None:
    training.learner.method.parameter_weight = float("inf")


@pytest.mark.parametrize(
    ("spoil", "term"),
    [(spoil_head, "kr"), (spoil_posterior, "kd"), (spoil_parameter_source, "parameter")],
)
def test_whatever_term_of_kr_is_not_finite_is_named(
    prepared: tuple[Experiment, Prepared], spoil, term: str
) -> None:
    experiment, facts = prepared
    training = build_training(experiment, Assets.open(facts), 2, Workers.alone())
    spoil(training)
    with pytest.raises(
        NonFiniteError, match=f"loss term '{term}' is not finite in epoch 1, step 1"
    ):
        training.run_epoch()


def test_a_full_disk_while_a_teacher_is_kept_leaves_nothing_and_what_was_left_is_swept(
    prepared: tuple[Experiment, Prepared],
) -> None:
    """The limit on a file's size is a real full disk to whoever writes it."""
    experiment, facts = prepared
    teachers, dataset = Path(facts.teacher_path).parent, open_data(Path(facts.data_path))
    left = teachers / f".abc.{uuid4().hex}"
    left.mkdir()
    another = with_values(experiment, {"teacher.seed": 7, "teacher.num_epochs": 1}, "test")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(DiskFullError, match=r"cache/teachers/.*: the file would be larger"):
            prepare_teacher(another, dataset, torch.device("cpu"), lambda done, total: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not left.exists()
    folders = [path for path in teachers.iterdir() if path.is_dir()]
    assert folders == [Path(facts.teacher_path)]
