"""From `data.unlabelled` to trained students: who learns from what, and what is unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from krscale.config import DataConfig, Experiment, load
from krscale.data import Dataset, prepare_data
from krscale.errors import UserError
from krscale.methods import METHODS, takes_unlabelled
from krscale.methods.batch import UNLABELLED
from krscale.methods.kd import KD
from krscale.parallel import Workers
from krscale.progress import Progress
from krscale.runs.refit import refit
from krscale.runs.verify_cache import Shared
from krscale.search.results import _without_labels
from krscale.setup import methods as setup_methods
from krscale.setup.build import Assets, build_training
from krscale.setup.methods import check_methods
from krscale.setup.plan import describe
from krscale.setup.prepare import Prepared, Setup, prepare, prepare_knowledge
from krscale.setup.recipe import StoreRecipe
from krscale.store import check_store
from krscale.tracking import datasets_used
from krscale.training.loop import Training

NUM_LABELLED, NUM_UNLABELLED = 100, 60
NAMES = ", ".join(f"'{name}'" for name in (*METHODS, "kr+dkd"))
SMALL = (
    "tracking.enabled=false",
    "teacher.width=4",
    "teacher.num_epochs=1",
    "distill.probe_grid=2",
    "views.num_views=1",
    "train.num_epochs=1",
    "distill.reviewkd_warmup=0",
    "ladder.capacities=['1/4']",
    "train.global_batch_size=32",
    f"search.methods=[{NAMES}]",
)


class Listening(Progress):
    """Keeps the notes."""

    def __init__(self) -> None:
        super().__init__(quiet=True, planned={})
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, of which some have labels and some have none."""
    root = tmp_path_factory.mktemp("unlabelled")
    whole = prepare_data(DataConfig(), root / "digits")
    train = whole.split("train")
    arrays = {
        "train_images": train.images[:NUM_LABELLED],
        "train_labels": train.labels[:NUM_LABELLED],
    }
    for name, number in (("val", 40), ("test", 40)):
        split = whole.split("val" if name == "val" else "test")
        arrays[f"{name}_images"] = split.images[:number]
        arrays[f"{name}_labels"] = split.labels[:number]
    np.savez(root / "labelled.npz", **arrays)
    rest = train.images[NUM_LABELLED : NUM_LABELLED + NUM_UNLABELLED]
    np.savez(root / "unlabelled.npz", images=rest)
    return root


def experiment(root: Path, *settings: str, unlabelled: bool = True) -> Experiment:
    more = [f"data.unlabelled={root / 'unlabelled.npz'}"] if unlabelled else []
    data = ["data.source=numpy", f"data.path={root / 'labelled.npz'}", *more]
    return load(None, [*SMALL, *data, f"storage_path={root / 'runs'}", *settings])


@pytest.fixture(scope="module")
def found(root: Path) -> tuple[Prepared, Setup, list[str]]:
    with Listening() as progress:
        setup = Setup.resolve(experiment(root), progress)
        return prepare_knowledge(setup, progress), setup, progress.notes


@pytest.fixture(scope="module")
def without(root: Path, found: object) -> Prepared:
    with Progress(quiet=True, planned={}) as progress:
        return prepare(experiment(root, unlabelled=False), progress)


def training(root: Path, prepared: Prepared, method: str) -> Training:
    given = experiment(root, f"distill.method={method}", unlabelled=bool(prepared.taught_path))
    return build_training(given, Assets.open(prepared), 4, Workers.alone(torch.device("cpu")))


def test_data_and_teacher_are_those_of_before(
    found: tuple[Prepared, Setup, list[str]], without: Prepared
) -> None:
    prepared, setup, notes = found
    assert prepared.data_path == without.data_path
    assert prepared.teacher_path == without.teacher_path
    assert prepared.teacher == without.teacher
    assert prepared.store_path != without.store_path
    assert (without.taught_path, without.taught) == ("", None)
    assert setup.taught.num_unlabelled == NUM_UNLABELLED
    said = [note for note in notes if "without labels" in note]
    assert said == [
        f"{setup.experiment.data.unlabelled}: 60 images without labels, beside 100 with labels. "
        "Students of the teacher learn from all of them, 5 steps an epoch. Without a teacher, from "
        "those with labels: plain, label_smoothing, 4."
    ]


@pytest.mark.parametrize("method", [*METHODS, "kr+dkd"])
def test_who_learns_from_them(
    root: Path, found: tuple[Prepared, Setup, list[str]], method: str
) -> None:
    learning = training(root, found[0], method)
    seen = torch.cat([batch.labels for batch in learning.loader.epoch(0)])
    if takes_unlabelled(method):
        assert len(seen) == NUM_LABELLED + NUM_UNLABELLED
        assert (seen == UNLABELLED).sum() == NUM_UNLABELLED
    else:
        assert method in ("plain", "label_smoothing")
        assert len(seen) == NUM_LABELLED
        assert (seen >= 0).all()
    metrics = learning.run_epoch()
    assert 0.0 <= metrics["train/accuracy"] <= 1.0
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("method", ["plain", "label_smoothing"])
def test_without_a_teacher_a_training_is_the_same_to_the_bit(
    root: Path, found: tuple[Prepared, Setup, list[str]], without: Prepared, method: str
) -> None:
    states = []
    for prepared in (found[0], without):
        learning = training(root, prepared, method)
        learning.run_epoch()
        states.append(learning.student.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_the_store_holds_them_and_is_checked(
    root: Path, found: tuple[Prepared, Setup, list[str]]
) -> None:
    prepared = found[0]
    recipe = StoreRecipe.find(experiment(root))
    assert str(recipe.path) == prepared.store_path
    assert recipe.open().num_samples == NUM_LABELLED + NUM_UNLABELLED
    assert check_store(recipe.spec(torch.device("cpu"))).num_rows == 160
    assert recipe.of_features(["crd"])["pooled"].open().num_samples == 160
    np.savez(root / "others.npz", images=np.load(root / "unlabelled.npz")["images"][:9])
    with pytest.raises(UserError, match="never prepared; `krscale teach` does so"):
        StoreRecipe.find(experiment(root, f"data.unlabelled={root / 'others.npz'}"))


def test_a_method_of_ones_own_is_refused_until_it_says_that_it_takes_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Strict(KD):
        takes_unlabelled = False

    monkeypatch.setitem(setup_methods.METHODS, "kd", Strict)
    check_methods(experiment(root, unlabelled=False))
    for refuse in (check_methods, describe):
        with pytest.raises(UserError, match=r"search\.methods: 'kd' .*\(takes_unlabelled\)"):
            refuse(experiment(root))


def test_a_plan_counts_them(root: Path, found: object, tmp_path: Path) -> None:
    for storage in (root / "runs", tmp_path):  # prepared, and not
        plan = describe(experiment(root, f"storage_path={storage}"))
        assert (plan.num_train, plan.num_unlabelled) == (NUM_LABELLED, NUM_UNLABELLED)
        assert (plan.num_images("plain"), plan.num_images("kr+dkd")) == (100, 160)
        assert any("60 images without labels" in note for note in plan.notes)
    assert describe(experiment(root, unlabelled=False)).num_images("kr") == 100


def test_a_plan_refuses_what_a_start_would(root: Path, tmp_path: Path) -> None:
    labelled = np.load(root / "labelled.npz")
    np.savez(tmp_path / "leak.npz", images=labelled["test_images"])
    given = experiment(root, f"data.unlabelled={tmp_path / 'leak.npz'}")
    with pytest.raises(UserError, match=r"pixel by pixel: 40: .*\(in test\)"):
        describe(given)
    with (
        pytest.raises(UserError, match=r"pixel by pixel: 40: .*\(in test\)"),
        Progress(quiet=True, planned={}) as progress,
    ):
        Setup.resolve(given, progress)


def test_mlflow_is_told_how_many(
    found: tuple[Prepared, Setup, list[str]], without: Prepared
) -> None:
    prepared, setup, _ = found
    assert prepared.params("kr+dkd") == {"data.num_unlabelled": NUM_UNLABELLED}
    assert prepared.params("plain") == {"data.num_unlabelled": 0}
    assert without.params("kr") == {}
    used = datasets_used(setup.dataset, setup.experiment.data, prepared.taught)
    assert [one.context for one in used] == ["train", "val", "test", "unlabelled"]
    assert used[-1].digest == f"{setup.taught.fingerprint}-unlabelled"
    assert used[:3] == datasets_used(setup.dataset, setup.experiment.data)


def test_a_refit_learns_from_train_validation_and_them(
    root: Path, found: tuple[Prepared, Setup, list[str]], tmp_path: Path, monkeypatch
) -> None:
    learned: list[Dataset] = []
    data_for = Assets.data_for

    def watched(assets: Assets, method: object) -> Dataset:
        learned.append(data_for(assets, method))  # type: ignore[arg-type]
        return learned[-1]

    monkeypatch.setattr(Assets, "data_for", watched)
    for method, number in (("kr", 200), ("plain", 140)):
        given = experiment(root, f"distill.method={method}", "name=again")
        with Progress(quiet=True, planned={}) as progress:
            refit(given, found[1].dataset, 4, tmp_path, progress)
        assert learned[-1].num_train == number


def test_what_a_run_rests_on_has_them(
    root: Path, found: tuple[Prepared, Setup, list[str]], without: Prepared
) -> None:
    """`krscale verify` compares their images and store, and `krscale clean` keeps both."""
    shared = Shared.of(experiment(root))
    stores = (found[0].store_path, *found[0].feature_paths.values())
    assert set(shared.stores) == set(map(Path, stores))
    assert {Path(found[0].data_path), Path(found[0].taught_path)} < set(shared.data)
    alone = Shared.of(experiment(root, unlabelled=False))
    assert Path(without.store_path) in alone.stores
    assert len(alone.data) == len(shared.data) - 1


def test_they_are_known_where_the_network_is_not(
    root: Path, found: tuple[Prepared, Setup, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's module is not found from every folder; `krscale clean` must not remove them."""

    def lost(*_: object) -> None:
        raise UserError("student.model: no module 'my_net'")

    monkeypatch.setattr("krscale.runs.verify_cache.Networks.resolve", lost)
    shared = Shared.of(experiment(root))
    assert {Path(found[0].data_path), Path(found[0].taught_path)} < set(shared.data)
    assert Path(found[0].store_path) in shared.stores
    assert shared.note == "student.model: no module 'my_net'"


def test_the_curve_has_their_number_and_digest(
    found: tuple[Prepared, Setup, list[str]], without: Prepared
) -> None:
    facts = _without_labels(Assets.open(found[0]))
    assert facts == {"num_unlabelled": NUM_UNLABELLED, "unlabelled": found[1].taught.unlabelled}
    assert _without_labels(Assets.open(without)) == {}
