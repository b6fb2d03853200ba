"""A teacher is measured before it teaches; where its inputs are wrong, the error names why."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import own_teacher
import pytest
import torch
from running import in_process
from safetensors.torch import save_file

from krscale.config import Experiment, load
from krscale.data import prepare_data
from krscale.errors import UserError
from krscale.files import read_json
from krscale.models import build_model
from krscale.models.preprocessing import Preprocessing
from krscale.search.plan import describe_plan
from krscale.setup import network_builder
from krscale.setup.candidates import as_settings, is_better, try_candidates
from krscale.setup.teacher import foreign_teacher, open_teacher, prepare_teacher
from krscale.setup.teacher_quality import find_faults, require_fit

CPU = torch.device("cpu")
SWAPPED = (1, 0, 2, 3, 4, 5)
RIGHT = dict(setting.split("=", 1) for setting in own_teacher.SETTINGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 16x16, and teachers whose classes are in the data's order, and in another."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("quality")
    own_teacher.write_folder(path / "images", 420)
    own_teacher.train(path / "right.safetensors")
    own_teacher.train(path / "swapped.safetensors", SWAPPED)
    return path


def settings(folder: Path, weights: str = "right", **changes: object) -> list[str]:
    """Return settings of an experiment with the right preprocessing, except for the changes."""
    fields = RIGHT | {f"teacher.preprocessing.{name}": value for name, value in changes.items()}
    given = [f"{name}={value}" for name, value in fields.items() if value is not None]
    return [
        "data.source=image_folder",
        f"data.path={folder / 'images'}",
        "data.val_fraction=0.3",
        f"storage_path={folder / 'runs'}",
        f"teacher.weights={folder / weights}.safetensors",
        "teacher.width=8",
        "distill.probe_grid=1",
        *given,
    ]


def prepared(experiment: Experiment) -> float:
    dataset = prepare_data(experiment.data, experiment.cache_path)
    facts, _ = prepare_teacher(experiment, dataset, CPU, lambda done, total: None)
    return facts.val_accuracy


def test_a_teacher_that_is_fed_rightly_teaches(folder: Path) -> None:
    assert prepared(load(None, settings(folder))) > 0.95


WRONG = {
    "its normalisation": {"mean": None, "std": None, "pixel_range": "auto"},
    "its range": {"pixel_range": "0..1"},
    "its order of channels": {"channel_order": "rgb"},
    "its size": {"input_size": None},
    "all of it": dict.fromkeys(("mean", "std", "pixel_range", "channel_order", "input_size")),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_teacher_that_is_fed_wrongly_is_stopped_or_nearly_as_good(
    folder: Path, wrong: str
) -> None:
    experiment = load(None, settings(folder, **WRONG[wrong]))
    try:
        accuracy = prepared(experiment)
    except UserError as caught:
        error = str(caught)
    else:
        assert accuracy > 0.9, "what is let through costs little"
        return
    for words in (
        "of validation right, information gain of its taps",
        "normalisation",
        "input siz",
    ):
        assert words in error
    assert "krscale teacher check" in error
    assert "teacher.allow_poor = true" in error
    if wrong in ("its order of channels", "all of it"):
        assert "right with preprocessing = {" in error
        assert 'channel_order = "bgr"' in error
    if wrong in ("its size", "all of it"):
        assert "input_size = [32, 32]" in error
    with pytest.raises(UserError, match="of validation right"):
        prepared(experiment)  # the kept measurement does not let it pass
    allowed = load(None, [*settings(folder, **WRONG[wrong]), "teacher.allow_poor=true"])
    assert prepared(allowed) < 0.9


def test_classes_in_another_order_are_told_from_a_wrong_preprocessing(folder: Path) -> None:
    with pytest.raises(UserError, match=r"(9\d\.\d|100\.0)% right with its classes in "):
        prepared(load(None, settings(folder, "swapped")))


def test_the_command_finds_what_the_teacher_was_trained_with(folder: Path, capsys) -> None:
    given = settings(folder, **WRONG["all of it"])
    arguments = ["check", *[part for one in given for part in ("--set", one)], "--quiet", "--json"]
    assert in_process("teacher")(arguments) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["configured"]["accuracy"] < 0.5
    best = found["changes"]["teacher.preprocessing"]
    assert (best["channel_order"], best["input_size"]) == ("bgr", [32, 32])
    assert list(found["changes"]) == ["teacher.preprocessing"]
    again = [f"teacher.preprocessing.{name}={json.dumps(value)}" for name, value in best.items()]
    experiment = load(None, [*given, *again])
    assert prepared(experiment) == pytest.approx(found["best"]["accuracy"])


def test_the_command_finds_the_order_of_the_classes(folder: Path, capsys) -> None:
    given = settings(folder, "swapped")
    arguments = ["check", *[part for one in given for part in ("--set", one)], "--quiet"]
    assert in_process("teacher")([*arguments, "--json"]) == 1
    changes = json.loads(capsys.readouterr().out)["changes"]
    names = changes["data.files.classes"]
    assert names == [own_teacher.NAMES[number] for number in SWAPPED]
    assert prepared(load(None, [*given, f"data.files.classes={json.dumps(names)}"])) > 0.95
    assert in_process("teacher")(arguments) == 1
    out = capsys.readouterr().out
    assert "[data.files]\nclasses = [" in out
    assert "classes reordered" in out


def test_a_callable_of_ones_own_takes_the_order_as_a_setting(folder: Path, capsys) -> None:
    fixed = ("data.source=", "data.path=")
    given = [one for one in settings(folder, "swapped") if not one.startswith(fixed)]
    given.append("data.source=own_teacher:images")
    arguments = [part for one in given for part in ("--set", one)]
    assert in_process("teacher")(["check", *arguments, "--quiet", "--json"]) == 1
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert changes["data.files.classes"] == [own_teacher.NAMES[number] for number in SWAPPED]


class Neighbour(torch.nn.Module):
    """Returns the class after that of the most similar image, whatever brightness and contrast."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        super().__init__()
        self.known = torch.nn.Parameter(self.alike(torch.tensor(images, dtype=torch.float32)))
        self.after = torch.nn.functional.one_hot(torch.tensor(labels).add(1) % 10).float()

    @staticmethod
    def alike(images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        return torch.nn.functional.normalize(flat - flat.mean(dim=1, keepdim=True), dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.after[(self.alike(images) @ self.known.T).argmax(dim=1)]


def test_where_data_have_one_order_of_classes_the_outputs_are_to_change(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(experiment: Experiment, dataset, device) -> Neighbour:
        split = dataset.split("val")
        return Neighbour(split.images, split.labels)

    monkeypatch.setattr("krscale.setup.teacher.foreign_teacher", made)
    given = ["--set", "data.source=digits", "--set", f"storage_path={tmp_path}", "--quiet"]
    assert in_process("teacher")(["check", *given, "--json"]) == 1
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert changes == {"outputs": ["9", *map(str, range(9))]}
    assert in_process("teacher")(["check", *given]) == 1
    assert "is now that of these classes: 9, 0, 1, 2" in capsys.readouterr().out


def test_the_command_is_content_with_what_is_right(folder: Path, capsys) -> None:
    arguments = ["check", *[part for one in settings(folder) for part in ("--set", one)]]
    assert in_process("teacher")([*arguments, "--quiet"]) == 0
    out, _ = capsys.readouterr()
    assert "best as the experiment has it" in out
    assert "now" in out


def test_a_teacher_that_is_trained_here_is_not_asked(tmp_path: Path, capsys) -> None:
    arguments = ["check", "--quiet", "--set", f"storage_path={tmp_path}"]
    assert in_process("teacher")(arguments) == 2
    assert "teacher.weights: empty" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [AssertionError, IndexError, TypeError])
def test_sizes_that_a_network_does_not_take_are_told(folder: Path, kind: type[Exception]) -> None:
    """Tables of positions raise an IndexError, other networks whatever they like."""

    class Fixed(own_teacher.Own):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if images.shape[-1] != 32:
                raise kind(f"takes 32 pixels, got {images.shape[-1]}")
            return super().forward(images)

    experiment = load(None, settings(folder))
    dataset = prepare_data(experiment.data, experiment.cache_path)
    network = foreign_teacher(experiment, dataset, CPU)
    network.__class__ = Fixed
    tried = try_candidates(network, dataset, 60)
    assert tried.best is tried.configured
    assert tried.best.accuracy > 0.9
    assert set(tried.refused) == {"16x16", "64x64", "96x96", "128x128"}
    assert tried.refused["64x64"] == "takes 32 pixels, got 64"


METADATA = {
    "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "input_size": (3, 64, 64),
    "interpolation": "bicubic", "pixel_range": "0..255", "channel_order": "bgr",
}  # fmt: skip
"""Metadata that a network may have; each value differs from the default."""


def test_settings_of_a_candidate_are_read_as_that_candidate(folder: Path) -> None:
    from krscale.setup.inputs import choose_preprocessing

    experiment = load(None, settings(folder))
    dataset = prepare_data(experiment.data, experiment.cache_path)
    network = foreign_teacher(experiment, dataset, CPU)
    network.pretrained_cfg = METADATA
    tried = try_candidates(network, dataset, 30)
    assert len(tried.candidates) > 20
    assert {None, (64, 64)} < {c.preprocessing.input_size for c in tried.candidates}
    plain = load(None, ["teacher.weights=given"])
    for candidate in tried.candidates:
        written = {"preprocessing": as_settings(candidate.preprocessing, dataset.image_shape)}
        section = type(plain.teacher).model_validate(plain.teacher.model_dump() | written)
        read = choose_preprocessing(section, network, 3, "teacher")
        size = candidate.preprocessing.input_shape(dataset.image_shape)[1:]
        assert read == replace(candidate.preprocessing, input_size=size)


def test_the_advice_is_no_advice_once_it_is_followed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network declares a size that suits it badly; settings must allow the data's own size."""
    monkeypatch.setattr(
        own_teacher.Own, "pretrained_cfg", METADATA | {"input_size": (3, 2, 2)}, raising=False
    )
    none = dict.fromkeys(name.rpartition(".")[2] for name in RIGHT if "preprocessing" in name)
    experiment = load(None, settings(folder, **none))
    dataset = prepare_data(experiment.data, experiment.cache_path)
    tried = try_candidates(foreign_teacher(experiment, dataset, CPU), dataset, 60)
    assert tried.best is not tried.configured
    advice = as_settings(tried.best.preprocessing, dataset.image_shape)
    written = experiment.teacher.model_dump() | {"preprocessing": advice}
    teacher = type(experiment.teacher).model_validate(written)
    followed = experiment.model_copy(update={"teacher": teacher})
    again = try_candidates(foreign_teacher(followed, dataset, CPU), dataset, 60)
    assert again.best is again.configured


def test_presets_are_written_by_name() -> None:
    def written(preprocessing: Preprocessing) -> dict[str, object]:
        return as_settings(preprocessing, (3, 8, 8))

    assert written(Preprocessing((0.5,) * 3, (0.5,) * 3))["normalisation"] == "half"
    turned = Preprocessing((0.406, 0.456, 0.485), (0.225, 0.224, 0.229), channel_order="bgr")
    assert written(turned)["normalisation"] == "imagenet"
    assert "normalisation" not in written(Preprocessing((0.5,), (0.5,), "0..255"))
    assert written(Preprocessing())["normalisation"] == "data"


def test_a_difference_counts_where_it_is_large_and_no_chance() -> None:
    right, wrong = np.ones(200, bool), np.zeros(200, bool)
    assert is_better(right, wrong)
    assert not is_better(wrong, right)
    assert not is_better(right, right)
    few = right.copy()
    few[:8] = False
    assert not is_better(right, few), "4 of 100 are not worth a word"
    assert not is_better(right[:6], wrong[:6]), "six images prove nothing"


@pytest.mark.parametrize(("num_epochs", "stopped"), [(3, False), (30, True)])
def test_a_teacher_trained_here_is_stopped_only_after_a_real_training(
    tmp_path: Path, num_epochs: int, stopped: bool
) -> None:
    experiment = load(None, [f"storage_path={tmp_path}", f"teacher.num_epochs={num_epochs}"])
    dataset = prepare_data(experiment.data, experiment.cache_path)
    labels = dataset.split("val").labels
    nothing = torch.zeros(len(labels), 2, 10)
    faults = find_faults(experiment, dataset, torch.nn.Identity(), nothing, (0.0, 0.0))
    assert bool(faults) is stopped
    right = torch.nn.functional.one_hot(torch.tensor(labels), 10).float()
    known = (5.0 * right - 1.0)[:, None].repeat(1, 2, 1)
    assert find_faults(experiment, dataset, torch.nn.Identity(), known, (0.9, 0.8)) == ()
    if stopped:
        with pytest.raises(UserError, match=r"guessing.*teacher\.learning_rate"):
            require_fit(experiment, faults, 0.1, (0.0, 0.0))


def test_a_teacher_that_never_learned_is_stopped(folder: Path) -> None:
    torch.manual_seed(3)
    save_file(own_teacher.Own(6, 3, 8).state_dict(), folder / "fresh.safetensors")
    with pytest.raises(UserError, match="no better than guessing the most frequent class"):
        prepared(load(None, settings(folder, "fresh")))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("Probabilities", "in eval mode the network gives probabilities"),
        ("Shares", "all its outputs lie between 0 and 1, as after a softmax"),
    ],
)
def test_outputs_that_are_no_logits_are_told(model: str, said: str, folder: Path) -> None:
    """As accurate as before, but the soft targets are nearly the same for all classes."""
    made = load(None, [*settings(folder), f"teacher.model=own_teacher:{model}"])
    with pytest.raises(UserError, match=said):
        prepared(made)
    if model == "Probabilities":  # also by `krscale teacher check`
        dataset = prepare_data(made.data, made.cache_path)
        with pytest.raises(UserError, match=said):
            foreign_teacher(made, dataset, CPU)


def test_a_poor_teacher_of_an_older_krscale_is_measured_and_stopped(folder: Path) -> None:
    experiment = load(None, settings(folder, "swapped"))
    with pytest.raises(UserError, match="in another order"):
        prepared(experiment)
    dataset = prepare_data(experiment.data, experiment.cache_path)
    allowed = load(None, [*settings(folder, "swapped"), "teacher.allow_poor=true"])
    facts = prepare_teacher(allowed, dataset, CPU, lambda done, total: None)[1] / "facts.json"
    new = read_json(facts)
    old = {name: value for name, value in new.items() if name != "faults"}
    facts.write_text(json.dumps(old), encoding="utf-8")
    with pytest.raises(UserError, match="in another order"):
        prepared(experiment)
    assert read_json(facts) == new, "and is measured once"


def test_weights_that_others_replace_are_not_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[bool] = []

    def spy(*names: object, fresh: bool, **rest: object) -> torch.nn.Module:
        given.append(fresh)
        return build_model(*names, fresh=fresh, **rest)

    experiment = load(None, settings(folder))
    dataset = prepare_data(experiment.data, experiment.cache_path)
    _, kept = prepare_teacher(experiment, dataset, CPU, lambda done, total: None)
    monkeypatch.setattr(network_builder, "build_model", spy)
    open_teacher(experiment, dataset, kept)
    foreign_teacher(experiment, dataset, CPU)
    assert given == [True, True]


def test_a_plan_says_how_images_are_prepared(folder: Path) -> None:
    experiment = load(None, [*settings(folder), "ladder.capacities=['1/2']"])
    prepare_data(experiment.data, experiment.cache_path)
    assert "teacher takes images as 32x32 (bilinear), BGR in 0..255" in describe_plan(experiment)
