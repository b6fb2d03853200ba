"""Each network has its own preprocessing: chosen, reported, part of fingerprints, and applied."""

import json
from dataclasses import replace
from pathlib import Path

import own_teacher
import pytest
import torch

from krscale.config import Experiment, fingerprint, load
from krscale.config.older import FORMER_OF_KR, FORMER_WEIGHT, with_former_defaults
from krscale.errors import UserError
from krscale.models.preprocessing import DEFAULT, Preprocessing, preprocessing_of_network
from krscale.parallel import Workers
from krscale.progress import Progress
from krscale.runs.experiment_file import read_experiment
from krscale.runs.folder import run_folder
from krscale.setup.build import Assets, build_training
from krscale.setup.inputs import choose_preprocessing
from krscale.setup.network_builder import build_student, build_teacher
from krscale.setup.networks import Networks
from krscale.setup.prepare import Prepared, prepare
from krscale.setup.recipe import StoreRecipe
from krscale.store import WHERE_BITS, check_store
from krscale.training.loop import evaluate

OWN = Preprocessing(own_teacher.MEAN, own_teacher.STD, "0..255", "bgr", (32, 32))
CPU = torch.device("cpu")


class Notes(Progress):
    """Keeps the notes for the user."""

    def __init__(self) -> None:
        super().__init__(quiet=True, planned={})
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def chosen(network: object, *settings: str) -> Preprocessing:
    config = load(None, [f"teacher.preprocessing.{setting}" for setting in settings])
    teacher = config.teacher.model_copy(update={"weights": "given"})
    return choose_preprocessing(teacher, network, 3, "teacher")


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ((), {}),
        (("input_size=64",), {"input_size": (64, 64)}),
        (("input_size=[64, 48]", "interpolation=bicubic"),
         {"input_size": (64, 48), "interpolation": "bicubic"}),
        (("normalisation=data",), {"mean": None, "std": None}),
        (("normalisation=none",), {"mean": (0.0,), "std": (1.0,)}),
        (("normalisation=half",), {"mean": (127.5,), "std": (127.5,)}),
        (("normalisation=imagenet", "pixel_range=0..1", "channel_order=rgb"),
         {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "pixel_range": "0..1",
          "channel_order": "rgb"}),
        (("mean=0.5", "std=[0.5, 0.4, 0.3]"), {"mean": (0.5,), "std": (0.5, 0.4, 0.3)}),
    ],
)  # fmt: skip
def test_what_is_set_stands_before_what_the_network_says(settings, changes) -> None:
    network = own_teacher.Described(6, 3, 8)
    assert chosen(network, *settings) == Preprocessing(**{**OWN.__dict__, **changes})


SAID = {"mean": (0.2, 0.4, 0.8), "std": (0.1, 0.2, 0.5)}
AS_BYTES = {"mean": (51.0, 102.0, 204.0), "std": (25.5, 51.0, 127.5), "pixel_range": "0..255"}
NONE = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


@pytest.mark.parametrize(
    ("attribute", "said", "setting", "expected"),
    [
        # Libraries mean 0..1 and red first.
        ("pretrained_cfg", SAID, "pixel_range=0..255", AS_BYTES),
        ("pretrained_cfg", NONE, "pixel_range=0..255", {**NONE, "pixel_range": "0..255"}),
        ("pretrained_cfg", SAID, "channel_order=bgr",
         {"mean": (0.8, 0.4, 0.2), "std": (0.5, 0.2, 0.1), "channel_order": "bgr"}),
        ("preprocessing", AS_BYTES, "pixel_range=0..1", SAID),
        ("preprocessing", {**SAID, "channel_order": "bgr"}, "channel_order=rgb",
         {"mean": (0.8, 0.4, 0.2), "std": (0.5, 0.2, 0.1)}),
        # One's own network that says neither means what the experiment says.
        ("preprocessing", {**AS_BYTES, "pixel_range": None}, "pixel_range=0..255", AS_BYTES),
        ("preprocessing", SAID, "channel_order=bgr", {**SAID, "channel_order": "bgr"}),
    ],
)  # fmt: skip
def test_a_range_or_an_order_alone_keeps_the_normalisation_of_the_network(
    attribute: str, said: dict, setting: str, expected: dict
) -> None:
    """Fails if pixels in 0..255 are normalised by a mean of pixels in 0..1."""
    network = own_teacher.Own(6, 3, 8)
    setattr(network, attribute, said)
    found, wanted = chosen(network, setting), Preprocessing(**expected)
    assert found.mean == pytest.approx(wanted.mean)
    assert found.std == pytest.approx(wanted.std)
    assert replace(found, mean=None, std=None) == replace(wanted, mean=None, std=None)


def test_presets_are_turned_for_networks_that_take_blue_first() -> None:
    found = chosen(None, "normalisation=imagenet", "channel_order=bgr")
    assert found.mean == (0.406, 0.456, 0.485)


def test_metadata_is_of_the_weights_and_not_asked_without_them() -> None:
    network = own_teacher.Described(6, 3, 8)
    assert choose_preprocessing(load().teacher, network, 3, "teacher") == DEFAULT
    pretrained = load(None, ["student.options={pretrained = true}"]).student
    found = choose_preprocessing(pretrained, network, 3, "student")
    assert found == Preprocessing(**{**OWN.__dict__, "input_size": None}), "trained at our size"
    assert chosen(own_teacher.Own(6, 3, 8)) == DEFAULT


def test_what_ones_own_network_says_itself_is_followed_without_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such a network may load weights in a way that krscale cannot detect."""
    said = dict(own_teacher.Described.pretrained_cfg)
    at_our_size = Preprocessing(**{**OWN.__dict__, "input_size": None})
    network = own_teacher.Own(6, 3, 8)
    network.pretrained_cfg = {**said, "mean": (1.0, 2.0, 3.0)}  # timm sets it without weights, too
    own = load(None, ["teacher.model=own_teacher:Own", "student.model=own_teacher:Own",
                      "teacher.options={}", "student.options={}"])  # fmt: skip
    assert choose_preprocessing(own.student, network, 3, "student") == DEFAULT
    network.preprocessing = said
    for config in (own.teacher, own.student):
        assert choose_preprocessing(config, network, 3, "student") == at_our_size
    of_krscale, of_library = load().student, load(None, ["student.model=timm:resnet18"]).student
    for config in (of_krscale, of_library):
        assert choose_preprocessing(config, network, 3, "student") == DEFAULT
    turned = load(None, ["student.model=own_teacher:Own", "student.preprocessing.mean=5",
                         "student.preprocessing.std=2"]).student  # fmt: skip
    assert choose_preprocessing(turned, network, 3, "student").mean == (5.0,)
    network.preprocessing = {"mean": 0.5}
    with pytest.raises(UserError, match=r"Own\.preprocessing: has one of mean and std"):
        choose_preprocessing(own.student, network, 3, "student")
    task = type("Task", (), {"num_classes": 6, "image_shape": (3, 16, 16), "num_train": 999})()
    assert Networks.resolve(own, task).describe_inputs() == ()
    monkeypatch.setattr(own_teacher.Own, "preprocessing", said, raising=False)
    lines = Networks.resolve(own, task).describe_inputs()
    assert lines == tuple(
        f"{name} takes images as {at_our_size.describe()}" for name in ("teacher", "student")
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["mean=0.5"], "teacher.preprocessing.mean: mean and std go together"),
        (["mean=0.5", "std=0.5", "normalisation=half"], "give one of them"),
        (["mean=0.5", "std=0"], "teacher.preprocessing.std: .*greater than 0"),
        (["channel_order=brg"], "'auto', 'rgb' or 'bgr'"),
        (["input_size=0"], "greater than or equal to 1"),
        (["input_size=[1,2,3]"], "at most 2 items"),
        (["normalization=half"], "Did you mean 'teacher.preprocessing.normalisation'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(None, [f"teacher.preprocessing.{setting}" for setting in settings])


def test_numbers_that_do_not_fit_the_images_are_refused() -> None:
    config = load(None, ["teacher.preprocessing.normalisation=imagenet"])
    task = type("Task", (), {"num_classes": 10, "image_shape": (1, 8, 8), "num_train": 99})()
    with pytest.raises(UserError, match=r"teacher\.preprocessing\.mean: 3 numbers .*1 channel"):
        build_teacher(config, task)


def test_defaults_leave_fingerprints_as_they_were(tmp_path: Path) -> None:
    # Settings and fingerprint of the last commit without this choice.
    former = [f"distill.{name}={json.dumps(value)}" for name, value in FORMER_OF_KR.items()]
    former.append(f"distill.kr_weight={FORMER_WEIGHT}")
    assert load(None, former).fingerprint() == "8bf8a494dc9634ac"
    other = load(None, ["student.preprocessing.input_size=16"])
    assert other.fingerprint() != load().fingerprint()


def test_a_run_older_than_the_choice_goes_on_as_it_was() -> None:
    def older(**teacher: object) -> Experiment:
        stored = load().model_dump(mode="json")
        for name in ("teacher", "student"):
            del stored[name]["preprocessing"]
        stored["teacher"] |= teacher
        return Experiment.model_validate(with_former_defaults(stored))

    assert older() == load()
    assert older(weights="w.pt").teacher.preprocessing == load().teacher.preprocessing
    for teacher in (
        {"model": "timm:resnet18", "options": {"pretrained": True}},
        {"model": "mine:Teacher", "weights": "w.pt"},
    ):
        assert older(**teacher).teacher.preprocessing.normalisation == "data"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Prepared, list[str]]:
    """A teacher with 32x32 BGR inputs, and students with 24x24 inputs, for images of 16x16."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("own")
    weights = own_teacher.train(folder / "weights.safetensors")
    own_teacher.write_folder(folder / "images", 360)
    settings = (
        "data.source=image_folder",
        f"data.path={folder / 'images'}",
        f"storage_path={folder / 'runs'}",
        f"teacher.weights={weights}",
        "teacher.width=8",
        "views.num_views=1",
        "distill.probe_grid=2",
        "student.preprocessing.normalisation=half",
        "student.preprocessing.input_size=24",
        "train.num_epochs=1",
        *own_teacher.SETTINGS,
    )
    experiment, progress = load(None, settings), Notes()
    with progress:
        prepared = prepare(experiment, progress)
    return experiment, prepared, progress.notes


def test_the_teacher_is_as_good_as_it_was_where_it_was_trained(own) -> None:
    experiment, prepared, notes = own
    assert prepared.teacher.val_accuracy > 0.8, "of six classes"
    assert min(prepared.teacher.information_gain) > 0.5
    said = [note for note in notes if " images as " in note]
    assert len(said) == 2
    assert "teacher takes images as 32x32 (bilinear), BGR in 0..255, mean 90, 110, 130" in said[0]
    assert "student takes images as 24x24 (bilinear), RGB in 0..1, mean 0.5, std 0.5" in said[1]
    recipe = StoreRecipe.find(experiment)
    assert check_store(recipe.spec(CPU), 40).max_difference < 0.01


def test_another_preprocessing_is_another_teacher_and_another_store(own) -> None:
    experiment, _, _ = own
    recipe = StoreRecipe.find(experiment)
    described = experiment.model_copy(
        update={"teacher": experiment.teacher.model_copy(
            update={"preprocessing": load().teacher.preprocessing}
        )}
    )  # fmt: skip
    with pytest.raises(UserError, match="never prepared"):
        StoreRecipe.find(described)
    network = Networks.resolve(experiment, recipe.dataset).teacher
    assert network.preprocessing == OWN
    assert network.stage_shapes[0][1:] == (16, 16), "of images of 32"
    assert network.image_shape == (3, 32, 32)


def test_only_tokens_of_oblong_images_have_another_store_than_before(own) -> None:
    def features(image_shape: tuple[int, ...], *stages: tuple[int, ...]) -> str:
        teacher = replace(recipe.networks.teacher, stage_shapes=stages, image_shape=image_shape)
        networks = replace(recipe.networks, teacher=teacher)
        return replace(recipe, networks=networks, kind="where").key["features"]

    recipe = StoreRecipe.find(own[0])
    paths = recipe.networks.teacher.stage_paths
    for shape, stage in (((1, 12, 12), (36, 8)), ((1, 8, 18), (8, 4, 9))):
        before = fingerprint(["where", paths, (stage,), ((4, 4),), WHERE_BITS])
        assert features(shape, stage) == before
    assert features((1, 8, 18), (36, 8)) != features((1, 12, 12), (36, 8)), "4x9 was read as 6x6"


def test_students_learn_from_the_same_views_in_their_own_way(own) -> None:
    experiment, prepared, _ = own
    assets = Assets.open(prepared)
    training = build_training(experiment, assets, 4, Workers.alone(CPU))
    batch = next(training.loader.epoch(0))
    assert batch.images.shape[1:] == (3, 24, 24)
    assert float(batch.images.min()) >= -1.0 - 1e-5
    right = batch.tap_logits.argmax(-1)[:, -1].eq(batch.labels).float().mean()
    assert right > 0.8, "as a teacher reads images that are its own"
    found = training.run_epoch()
    assert found["train/loss"] > 0
    again = evaluate(training.student, assets.dataset, assets.validation, Workers.alone(CPU))
    assert again["accuracy"] == pytest.approx(found["val/accuracy"])
    student = build_student(experiment, assets.dataset, 4)
    assert preprocessing_of_network(student) == Preprocessing((0.5,), (0.5,), input_size=(24, 24))


def test_a_run_with_a_choice_is_read_again(own, tmp_path: Path) -> None:
    experiment, _, _ = own
    experiment = experiment.model_copy(update={"storage_path": str(tmp_path)})
    with run_folder(experiment, {}):
        pass
    assert read_experiment(experiment.run_path).teacher == experiment.teacher
