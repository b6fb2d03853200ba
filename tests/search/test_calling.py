"""`krscale.search` on objects, trained in this process instead of on Ray."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import ROOT, blocks
from finished_search import without_ray
from foreign_networks import LikeResNet
from gratings import MEAN, STD, gratings, trained
from running import in_process
from torch import nn
from torch.utils.data import DataLoader

import krscale
from krscale.config import PreprocessingConfig, load
from krscale.data.reading.pixels import Normalisation
from krscale.errors import DamagedFileError, UserError
from krscale.models.given import available
from krscale.report import write_curve
from krscale.runs.experiment_file import read_experiment
from krscale.search import session
from krscale.search.calling import _listed, _taking, _with_data
from krscale.search.given_networks import read_teacher
from krscale.search.result import SearchResult

SETTINGS: dict[str, Any] = {
    "num_trials": 1,
    "num_epochs": 3,
    "learning_rate": 0.05,
    "num_final_seeds": 1,
    "early_stopping": "none",
    "gpus_per_trial": 0,
    "quiet": True,
    "settings": {"views.num_views": 1, "distill.probe_grid": 2, "tracking.enabled": False},
}
TEST = gratings(2, 90)
TRAINED = trained()


def given(storage: Path, **changes: Any) -> dict[str, Any]:
    train, val, test = gratings(0, 120), gratings(1, 60), TEST
    return {
        "teacher": TRAINED,
        "students": {"tiny": lambda: LikeResNet(2), "small": LikeResNet},
        "data": (DataLoader(train, 40, shuffle=True), DataLoader(val, 40), DataLoader(test, 40)),
        "normalisation": (MEAN, STD),
        "storage_path": str(storage),
        **SETTINGS,
        **changes,
    }


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def result(storage: Path) -> SearchResult:
    torch.set_num_threads(1)
    with without_ray():
        return krscale.search(**given(storage))  # type: ignore[no-any-return]


def accuracy(network: nn.Module) -> float:
    images, labels = TEST.tensors
    with torch.no_grad():
        return float((network(images).argmax(dim=1) == labels).float().mean())


def test_the_result_is_a_table_of_rows(result: SearchResult, storage: Path) -> None:
    assert [(row["size"], row["method"]) for row in result.rows] == [
        ("tiny", "plain"), ("tiny", "kr"), ("small", "plain"), ("small", "kr"),
    ]  # fmt: skip
    for row in result.rows:
        size = 2 if row["size"] == "tiny" else 4
        assert row["num_parameters"] == sum(p.numel() for p in LikeResNet(size).parameters())
        assert row["num_trials"] == 1
        assert "train.learning_rate" in row["settings"]
    assert json.loads(json.dumps(result.rows)) == result.rows, "plain values"
    text = str(result)
    assert all(word in text for word in ("tiny", "small", str(result.path)))
    assert "\x1b" not in text
    assert repr(result) == text
    assert result.path == storage / "search"
    assert result.teacher_accuracy == pytest.approx(accuracy(TRAINED), abs=1e-6)


def test_a_student_takes_the_images_of_the_loaders(result: SearchResult) -> None:
    """Fails if students were trained on images with another normalisation."""
    for row in result.rows:
        student = result.load_student(size=row["size"], method=row["method"])
        assert isinstance(student, LikeResNet)
        assert not student.training
        assert accuracy(student) == pytest.approx(row["test_accuracy"], abs=1e-6)


def test_a_student_that_a_longer_search_has_replaced_is_not_loaded(result: SearchResult) -> None:
    """A result that was kept in a notebook loaded the weights of the new winner as its own."""
    file = result.path / "curve.json"
    kept = file.read_bytes()
    (tiny, small) = result.curve.sizes
    other = tiny.methods["kr"].model_copy(update={"best": {"train.learning_rate": 0.123}})
    changed = tiny.model_copy(update={"methods": {**tiny.methods, "kr": other}})
    try:
        write_curve(result.curve.model_copy(update={"sizes": (changed, small)}), result.path)
        with pytest.raises(UserError, match="kr at tiny may be another student now"):
            result.load_student(size="tiny", method="kr")
        result.load_student(size="tiny", method="plain")
        file.write_bytes(kept[:50])
        with pytest.raises(DamagedFileError, match=r"curve\.json"):
            result.load_student(size="tiny", method="plain")
        file.unlink()  # while it is extended
        with pytest.raises(UserError, match="the search may have gone on since this result"):
            result.load_student(size="tiny", method="plain")
    finally:
        file.write_bytes(kept)


def test_the_best_within_limits(result: SearchResult) -> None:
    best = result.best()
    assert best["val_accuracy"] == max(row["val_accuracy"] for row in result.rows)
    tiny = result.best(max_parameters=result.rows[0]["num_parameters"])
    assert tiny["size"] == "tiny"
    assert result.best(method="plain", size="small") == result.rows[2]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"size": "tinny"}, "unknown size 'tinny'. Did you mean 'tiny'"),
        ({"method": "kd"}, "unknown method 'kd'"),
        ({"max_params": 3}, "unknown argument 'max_params'. Did you mean 'max_parameters'"),
        ({"max_parameters": 3}, r"at most 3 parameters.* It is picked with max_parameters=\d+\.$"),
        ({"max_parameters": 0}, "max_parameters: a number of at least 1 is wanted"),
        ({"max_latency_ms": 0}, "max_latency_ms: a number above 0 is wanted"),
        ({"max_flops": "3"}, "max_flops: a number of at least 1"),
    ],
)
def test_a_wrong_wish_is_refused(wanted: Any, said: str, result: SearchResult) -> None:
    with pytest.raises(UserError, match=said):
        result.load_student(**wanted)


def test_the_same_call_returns_the_same_and_another_network_is_refused(
    result: SearchResult, storage: Path
) -> None:
    def no_trial(*_: Any) -> None:
        pytest.fail("it trained again")

    with without_ray(no_trial):
        again = krscale.search(**given(storage))
        assert again.rows == result.rows
        other = {"tiny": lambda: LikeResNet(2).requires_grad_(True), "small": LikeResNet}
        assert krscale.search(**given(storage, students=other)).rows == result.rows
        changed = {"tiny": lambda: Negative(2), "small": LikeResNet}
        with pytest.raises(UserError, match=r"code of ladder\.students\.tiny has changed"):
            krscale.search(**given(storage, students=changed))
        with pytest.raises(UserError, match="the weights of teacher have changed"):
            krscale.search(**given(storage, teacher=Negative.of(LikeResNetTrained())))


def test_other_images_are_refused_or_put_the_results_aside(tmp_path: Path) -> None:
    few: dict[str, Any] = {"students": {"tiny": LikeResNet}, "methods": ["plain"]}
    other = (gratings(3, 90), gratings(4, 60), gratings(5, 60))
    with without_ray():
        first = krscale.search(**given(tmp_path, **few))
        with pytest.raises(UserError, match="the images that were given are others"):
            krscale.search(**given(tmp_path, **few, data=other))
        assert krscale.search(**given(tmp_path, **few)).rows == first.rows
        again = krscale.search(**given(tmp_path, **few, data=other, new_data=True))
    assert again.curve.data["fingerprint"] != first.curve.data["fingerprint"]
    assert (tmp_path / "search" / "earlier-1" / "curve.json").is_file()
    again.load_student()


class Negative(LikeResNet):
    """A network with weights of the same names but other outputs."""

    def forward(self, x: torch.Tensor) -> Any:
        return -super().forward(x)

    @classmethod
    def of(cls, network: nn.Module) -> nn.Module:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.001)
        return network


def test_importable_networks_need_no_objects_later(tmp_path: Path) -> None:
    """Uses a width, capacities that are shares of the teacher, and images as pixels."""
    images, labels = gratings(0, 120).tensors
    pixels = ((images * STD + MEAN) * 255).round().byte()
    with without_ray():
        result = krscale.search(
            teacher=LikeResNetTrained,
            students=LikeResNet,
            data=(pixels, labels),
            name="named",
            methods="plain",
            storage_path=str(tmp_path),
            capacities=("1/4",),
            **{**SETTINGS, "settings": {**SETTINGS["settings"], "teacher.allow_poor": True}},
        )
        assert [row["size"] for row in result.rows] == ["1/4"]
        student = result.load_student()
        assert student(pixels[:4] / 255.0).shape == (4, 3)
        assert type(student.student) is LikeResNet
    experiment = read_experiment(result.path)
    assert experiment.student.model == "foreign_networks:LikeResNet"
    assert experiment.teacher.model.endswith("test_calling:LikeResNetTrained")
    assert not result.builders


def LikeResNetTrained() -> nn.Module:  # noqa: N802 - it stands for a class
    return copy.deepcopy(TRAINED)


def test_an_experiment_is_changed_by_what_is_given_with_it(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(searched / "cache", tmp_path / "cache")  # a teacher and a store take seconds
    file = tmp_path / "one.toml"
    file.write_text(
        f"name = 'one'\nstorage_path = '{tmp_path}'\n"
        "teacher = {width = 8, num_epochs = 1}\nladder.capacities = ['1/16']\n"
        "views.num_views = 1\ntracking.enabled = false\n"
        "train.num_epochs = 1\n[search]\nmethods = ['plain', 'kr']\ntrials_per_size = 9\n"
        "num_final_seeds = 1\nearly_stopping = 'none'\ngpus_per_trial = 0\n",
        encoding="utf-8",
    )
    with without_ray():
        result = krscale.search(file, methods=["plain"], num_trials=1, quiet=True)
        assert [(row["method"], row["num_trials"]) for row in result.rows] == [("plain", 1)]
        as_object = krscale.search(result.experiment, quiet=True)
        assert as_object.rows == result.rows
        overrides = ["--set", "search.methods=['plain']", "--set", "search.trials_per_size=1"]
        capsys.readouterr()
        assert in_process("tune")([str(file), *overrides, "--quiet", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == result.curve.model_dump(mode="json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": None}, "without an experiment, teacher must be given"),
        ({"teacher": None, "data": None}, "teacher and data must be given"),
        ({"methods": ["krr"]}, "krr"),
        ({"methods": 3}, "search: methods: a list of names is needed"),
        ({"settings": [1]}, "search: settings: a dictionary of dotted paths is needed"),
        ({"num_trials": 0}, "search.trials_per_size"),
        ({"epochs": 3}, "unknown setting 'epochs'. Did you mean 'num_epochs'"),
        ({"optimizer": "adamw", "learning_rate": None}, "learning_rate"),
        ({"num_epochs": 1, "warmup_epochs": 3}, "search: train.warmup_epochs: 3 are more than"),
        ({"students": {"1st": LikeResNet}}, "ladder.students"),
        ({"students": {"tiny": lambda: nn.Flatten()}}, "tiny"),
        ({"normalisation": None}, "normalisation=.mean, std."),
        ({"data": "digits"}, "normalisation: it says by what images that are given"),
        ({"data": "digitz", "normalisation": None}, "Did you mean 'digits'"),
        ({"teacher": LikeResNet(4)}, "no better than guessing"),
    ],
)
def test_what_is_wrong_is_said_before_anything_trains(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with without_ray(lambda *_: pytest.fail("it trained")), pytest.raises(UserError, match=said):
        krscale.search(**given(tmp_path, **changes))


def test_the_examples_of_the_page_run(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copy(empty_database, tmp_path / "mlflow.db")  # making one takes seconds
    page = (ROOT / "docs" / "search-in-python.md").read_text(encoding="utf-8")
    examples = [block for block in blocks(page, "python") if "# an experiment" not in block]
    assert len(examples) == 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KRSCALE_STORAGE_PATH", str(tmp_path))
    monkeypatch.setattr(session, "gpus_per_trial", lambda *_: 0.0)
    train, val, test = (gratings(seed, 60) for seed in range(3))
    names: dict[str, Any] = {
        "teacher": TRAINED,
        "Net": LikeResNet,
        "images": test.tensors[0],
        **{"train_set": train, "val_set": val, "test_set": test},
        **{"train_loader": DataLoader(train, 30, shuffle=True)},
        **{"val_loader": DataLoader(val, 30), "test_loader": DataLoader(test, 30)},
    }
    with without_ray():
        for example in examples:
            exec(compile(example, "docs/search-in-python.md", "exec"), names)
    assert names["logits"].shape == (60, 3)
    assert "second" in str(names["result"])
    assert "Pareto front" in capsys.readouterr().out


def test_methods_in_a_set_have_one_order() -> None:
    names = {f"kr+{term}" for term in ("dkd", "dist", "kd")} | {"plain", "kr"}
    assert _listed(names) == ("kr", "kr+dist", "kr+dkd", "kr+kd", "plain")
    assert _listed(name for name in ("plain", "kr")) == ("plain", "kr")
    assert _listed("kr") == ("kr",)


def test_an_object_that_is_no_experiment_is_refused() -> None:
    with pytest.raises(UserError, match="LikeResNet is no experiment"):
        krscale.search(LikeResNet(2))
    with pytest.raises(UserError, match=r"no.toml: no such file"):
        krscale.search("no.toml")


def test_the_package_of_the_same_name_is_the_function() -> None:
    package: Any = importlib.import_module("krscale.search")
    assert krscale.search is package
    assert "teacher" in inspect.signature(krscale.search).parameters
    assert load().name == "digits"


def test_settings_of_the_data_hold_for_images_that_are_given(tmp_path: Path) -> None:
    """Fails if the classes are called 0, 1, 2 in the files that are delivered with a student."""
    names = ["ant", "bee", "cat"]
    content = {"storage_path": str(tmp_path), "data": {"files": {"classes": names}}}
    images, labels = torch.rand(30, 1, 4, 4), torch.arange(30) % 3
    found, _ = _with_data(content, (), (images, labels), None, {"data.files.classes": names})
    assert found.data.files.classes == tuple(names)
    others, _ = _with_data(content, (), (images, labels), None, {})
    assert others.data.files.classes == (), "those of an experiment are of its own data"


def test_a_range_or_an_order_alone_is_of_images_as_they_are_given() -> None:
    def taken(of_loader: Normalisation | None, **own: str) -> dict[str, Any]:
        table = {"model": "object:teacher.Net", "preprocessing": own}
        return dict(_taking(table, of_loader)["preprocessing"])

    known = Normalisation((0.2, 0.4, 0.6), (0.1, 0.2, 0.3))
    order = {"channel_order": "bgr"}
    reversed_ = {"mean": (0.6, 0.4, 0.2), "std": (0.3, 0.2, 0.1)}
    assert taken(known, **order) == {**reversed_, **order}
    assert taken(None, **order) == {"normalisation": "none", **order}
    wanted = {"normalisation": "none", "pixel_range": "0..255"}
    assert taken(None, pixel_range="0..255") == wanted
    assert taken(known, normalisation="half", **order) == {"normalisation": "half", **order}


def test_a_teacher_takes_images_as_they_are_given_whatever_it_says(tmp_path: Path) -> None:
    """Networks of timm, trained or not, name the size of other images."""
    says = copy.deepcopy(TRAINED)
    of_others = {"input_size": (1, 24, 24), "mean": 0.1, "std": 0.2, "pixel_range": "0..255"}
    says.pretrained_cfg = of_others  # type: ignore[assignment]

    def taken(network: nn.Module, **preprocessing: Any) -> PreprocessingConfig:
        networks = read_teacher(network)
        teacher = {**networks.tables["teacher"], "preprocessing": preprocessing}
        content = {"storage_path": str(tmp_path), "teacher": teacher}
        with available(networks.builders):
            found, _ = _with_data(content, {"teacher": {}}, gratings(0, 60), (MEAN, STD), None)
        return found.teacher.preprocessing

    as_given = PreprocessingConfig(mean=(MEAN,), std=(STD,))
    assert taken(TRAINED) == as_given
    pinned = {"pixel_range": "0..1", "input_size": (12, 12)}
    assert taken(says) == as_given.model_copy(update=pinned)
    larger = {"pixel_range": "0..1", "input_size": (24, 24)}
    assert taken(says, input_size=(24, 24)) == as_given.model_copy(update=larger)
    assert taken(says, normalisation="half") == PreprocessingConfig(normalisation="half")
    in_bytes = {"mean": (255 * MEAN,), "std": (255 * STD,), "pixel_range": "0..255"}
    for network in (TRAINED, says):  # by the loader's numbers, not by those of the data or its own
        found = taken(network, pixel_range="0..255", input_size=(12, 12))
        assert found == PreprocessingConfig(**in_bytes, input_size=(12, 12))

    def refuse(size: int, _: nn.Module, images: tuple[torch.Tensor]) -> None:
        assert images[0].shape[-1] == size, f"images of {size} pixels alone"

    for size, pins in ((24, {"pixel_range": "0..1"}), (12, pinned)):
        of_one_size = copy.deepcopy(says)
        of_one_size.register_forward_pre_hook(partial(refuse, size))
        assert taken(of_one_size) == as_given.model_copy(update=pins), size
