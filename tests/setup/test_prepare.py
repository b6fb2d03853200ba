"""From a config to a training: the source of the gains, and the name of a non-finite term."""

import resource
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch

from krscale.config import Experiment, load, with_values
from krscale.data import describe_data, open_data, prepare_data
from krscale.errors import DiskFullError, NonFiniteError
from krscale.knowledge.probes import information_gain
from krscale.knowledge.taps import TappedModel
from krscale.knowledge.where import where_distributions
from krscale.parallel import Workers
from krscale.progress import Progress
from krscale.setup import teacher as teacher_module
from krscale.setup.build import Assets, build_training
from krscale.setup.networks import Networks
from krscale.setup.prepare import Prepared, prepare
from krscale.setup.tap_reading import read_logits
from krscale.setup.teacher import open_teacher, prepare_teacher
from krscale.setup.teacher_facts import TeacherFacts
from krscale.store import KnowledgeStore
from krscale.training.loop import Training

SETTINGS = (
    "teacher.width=4",
    "teacher.num_epochs=1",
    "views.num_views=1",
    "distill.probe_grid=2",
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
    """To the code that writes, the limit on a file's size acts like a full disk."""
    experiment, facts = prepared
    teachers, dataset = Path(facts.teacher_path).parent, open_data(Path(facts.data_path))
    kept = {path for path in teachers.iterdir() if path.is_dir()}
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
    assert {path for path in teachers.iterdir() if path.is_dir()} == kept


def test_a_student_without_taps_learns_from_logits(prepared: tuple[Experiment, Prepared]) -> None:
    experiment, facts = prepared
    flat = {"student.model": "foreign_networks:Flat", "student.options": {"num_inputs": 64}}
    flat |= {"student.taps": (), "distill.method": "kd", "search.methods": ["kd"]}
    training = build_training(
        with_values(experiment, flat, "test"), Assets.open(facts), 2, Workers.alone()
    )
    assert training.learner.tapped.paths == ()
    assert training.run_epoch()["train/kd"] > 0.0


@pytest.mark.parametrize("changes", [(), ("views.mixup=1", "views.cutmix=1")])
def test_positions_are_stored_and_compared_where_they_have_a_weight(
    prepared: tuple[Experiment, Prepared], changes: tuple[str, ...]
) -> None:
    before, facts = prepared
    assert not facts.feature_paths
    storage = f"storage_path={before.storage_path}"
    experiment = load(None, [*SETTINGS[:4], *changes, storage, "distill.where_weight=1.5"])
    with Progress(quiet=True, planned={}) as progress:
        found = prepare(experiment, progress)
    assert list(found.feature_paths) == ["where"]
    assets = Assets.open(found)
    assert assets.features["where"].layout.shapes == ((4, 4), (4, 4), (2, 2))
    training = build_training(experiment, assets, 2, Workers.alone())
    assert training.learner.tapped.stages == ("stages.0", "stages.1", "last")
    metrics = training.run_epoch()
    assert 0.0 < metrics["train/where"] < 10.0
    # The stored maps are of these very images, mixed ones too: they differ only by rounding.
    batch = next(iter(training.loader.epoch(0)))
    teacher = open_teacher(experiment, open_data(Path(found.data_path)), Path(found.teacher_path))
    read = TappedModel(teacher.tapped.model, (), ("stages.0", "stages.1", "last")).eval()
    with torch.no_grad():
        live = where_distributions(read(batch.images).stages)
    for stored, exact in zip(batch.teacher_features["where"], live, strict=True):
        assert (0.5 * (stored - exact).abs().sum(dim=(1, 2))).mean() < 0.06


def test_stages_of_one_position_are_named_before_anything_is_stored() -> None:
    small = ["teacher.options={num_blocks=1,num_stages=4}", "distill.where_weight=1"]
    experiment = load(None, [*small, "student.options={num_blocks=1,num_stages=4}"])
    networks = Networks.resolve(experiment, describe_data(experiment.data, experiment.cache_path))
    said = networks.describe_where()
    assert len(said) == 2, "of the teacher and of the student"
    assert said[0].startswith("teacher: 'last' gives [256, 1, 1], which has no grid of positions")
    assert networks.compares_where(("kr",))
    assert not networks.compares_where(("kd", "plain"))
    off = networks.with_values({"distill.where_weight": 0.0}, "test")
    assert not off.describe_where()
    assert not off.compares_where(("kr",))


def test_a_teacher_that_is_made_again_teaches_by_stores_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail if students learn from the outputs of an earlier teacher."""
    torch.set_num_threads(1)
    small = (*SETTINGS[1:4], "teacher.width=2", "distill.method=kd")
    experiment = load(None, [*small, "search.methods=['kd']", f"storage_path={tmp_path}"])

    def made() -> Prepared:
        with Progress(quiet=True, planned={}) as progress:
            return prepare(experiment, progress)

    before = made()
    shutil.rmtree(before.teacher_path)
    assert made() == before, "with the same weights it is the same teacher"
    train = teacher_module.train_teacher

    def train_elsewhere(*arguments: Any) -> None:
        train(*arguments)
        with torch.no_grad():
            for weight in arguments[-1].parameters():
                weight.mul_(1.01)

    shutil.rmtree(before.teacher_path)
    monkeypatch.setattr(teacher_module, "train_teacher", train_elsewhere)
    after = made()
    assert after.teacher_path == before.teacher_path
    assert after.store_path != before.store_path
    samples = torch.arange(8)
    then, now = (
        KnowledgeStore.open(Path(each.store_path)).tap_logits(0, samples)
        for each in (before, after)
    )
    assert not torch.equal(then, now)


def test_a_teacher_that_another_machine_has_sent_meanwhile_is_the_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `publish` replaces it; its facts would otherwise be those of the teacher made here."""
    torch.set_num_threads(1)

    def made(*settings: str) -> tuple[TeacherFacts, Path]:
        experiment = load(None, [*SETTINGS, "teacher.num_epochs=1", *settings])
        dataset = prepare_data(experiment.data, experiment.cache_path)
        return prepare_teacher(experiment, dataset, torch.device("cpu"), lambda done, total: None)

    other, folder_of_other = made(f"storage_path={tmp_path / 'other'}", "teacher.seed=7")
    sent: list[Path] = []

    def send(folder: Path) -> bool:
        sent.append(folder)
        if len(sent) == 1:
            shutil.rmtree(folder)
            shutil.copytree(folder_of_other, folder)
        return len(sent) > 1

    monkeypatch.setattr(teacher_module, "publish", send)
    facts, folder = made(f"storage_path={tmp_path / 'here'}")
    assert sent == [folder, folder]
    assert facts == other
