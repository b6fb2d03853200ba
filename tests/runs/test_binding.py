"""What a run folder is bound to: its images, and its teacher's code and weights."""

from __future__ import annotations

import csv
import importlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from krscale.cli.app import main
from krscale.config import Experiment, with_values
from krscale.digests import digest_path
from krscale.errors import UserError
from krscale.runs import older
from krscale.runs.aside import ORIGIN_FILE
from krscale.runs.binding import bind, bind_weights, check_networks
from krscale.setup.prepare import Setup, prepare_knowledge
from krscale.tracking.spool import Spool
from krscale.training.checkpoint import save_weights

CLASSES = ("ant", "bee", "cat")
NETWORK = """
from torch import nn
from {parts} import scale

class Net(nn.Module):
    tap_paths = ("stem",)

    def __init__(self, num_classes, in_channels, width):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(self.stem(scale(x)).mean((2, 3)))
"""
PARTS = "def scale(x):\n    return x * {factor}\n"


class Silent:
    """A reporter that ignores everything."""

    def phase(self, title: str) -> None: ...

    def advance(self, done: int, total: int) -> None: ...

    def note(self, text: str) -> None: ...


def image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for label, name in enumerate(CLASSES):
        for number in range(12):
            image(tmp_path / "images" / name / f"{number:02}.png", 100 * label + number)
    return tmp_path / "images"


@pytest.fixture
def experiment(tmp_path: Path, images: Path) -> Experiment:
    values = {
        "data.source": "image_folder",
        "data.path": str(images),
        "storage_path": str(tmp_path / "runs"),
        "teacher.width": 4,
        "teacher.num_epochs": 1,
        "train.global_batch_size": 8,
        "views.num_views": 1,
    }
    return with_values(Experiment(), values, "test")


@pytest.fixture
def folder(experiment: Experiment) -> Path:
    experiment.run_path.mkdir(parents=True)
    return experiment.run_path


def start(experiment: Experiment, folder: Path, *, new_data: bool = False) -> tuple[str, ...]:
    return bind(folder, Setup.resolve(experiment, Silent()), new_data=new_data)


def split_list(folder: Path) -> dict[str, tuple[str, str]]:
    with (folder / "splits.csv").open() as file:
        return {row["path"]: (row["label"], row["split"]) for row in csv.DictReader(file)}


def test_the_same_images_go_on_even_if_they_are_touched(
    experiment: Experiment, folder: Path, images: Path
) -> None:
    assert start(experiment, folder) == ()
    before = split_list(folder)
    assert set(before) == {f"{name}/{n:02}.png" for name in CLASSES for n in range(12)}
    assert all(label == path.split("/")[0] for path, (label, _) in before.items())
    assert {split for _, split in before.values()} == {"train", "val", "test"}
    fingerprint = Setup.resolve(experiment, Silent()).dataset.fingerprint
    for file in images.rglob("*.png"):
        os.utime(file, ns=(1, 1))
    assert start(experiment, folder) == ()
    assert Setup.resolve(experiment, Silent()).dataset.fingerprint == fingerprint
    assert split_list(folder) == before


def test_the_split_list_is_that_of_the_splits(experiment: Experiment, folder: Path) -> None:
    dataset = Setup.resolve(experiment, Silent()).dataset
    start(experiment, folder)
    listed = split_list(folder)
    for name in ("train", "val", "test"):
        split = dataset.split(name)
        paths = [path for path, (_, where) in listed.items() if where == name]
        for path, pixels in zip(paths, split.images, strict=True):
            read = np.asarray(Image.open(Path(experiment.data.path) / path)).transpose(2, 0, 1)
            assert np.array_equal(read, pixels)


def test_other_images_are_refused_and_counted(
    experiment: Experiment, folder: Path, images: Path
) -> None:
    start(experiment, folder)
    kept = (folder / ORIGIN_FILE).read_bytes()
    for number in (1, 2):
        (images / f"ant/{number:02}.png").unlink()
    image(images / "bee/99.png", 999)
    image(images / "cat/05.png", 555)
    (images / "cat/07.png").rename(images / "bee/07b.png")
    with pytest.raises(UserError) as caught:
        start(experiment, folder)
    text = str(caught.value)
    assert "3 images removed (ant 2, cat 1)" in text
    assert "2 images added (bee 2)" in text
    assert "1 image with other pixels (cat 1)" in text
    assert "--set name=" in text
    assert "--new-data" in text
    assert (folder / ORIGIN_FILE).read_bytes() == kept


def test_new_data_loses_nothing(experiment: Experiment, folder: Path, images: Path) -> None:
    start(experiment, folder)
    (folder / "students").mkdir()
    (folder / "students/one.safetensors").write_text("weights")
    (folder / "experiment.json").write_text("{}")
    (images / "ant/01.png").unlink()
    (line,) = start(experiment, folder, new_data=True)
    assert "1 image removed (ant 1)" in line
    assert (folder / "earlier-1/students/one.safetensors").read_text() == "weights"
    assert (folder / "earlier-1/experiment.json").exists()
    assert (folder / "experiment.json").exists()
    assert not (folder / "students").exists()
    assert "ant/01.png" in split_list(folder / "earlier-1")
    assert "ant/01.png" not in split_list(folder)
    assert start(experiment, folder) == ()
    (images / "ant/02.png").unlink()
    start(experiment, folder, new_data=True)
    assert (folder / "earlier-2/splits.csv").exists()
    assert (folder / "earlier-1/splits.csv").exists()
    assert start(experiment, folder, new_data=True) == (), "nothing has changed"
    assert not (folder / "earlier-3").exists()


def test_a_folder_without_the_record_gets_it_and_that_is_said(
    experiment: Experiment, folder: Path
) -> None:
    (folder / "experiment.json").write_text("{}")
    assert start(experiment, folder) == (), "it has only been claimed"
    (folder / ORIGIN_FILE).unlink()
    Spool(folder / "tracking" / "spool.jsonl")
    assert start(experiment, folder) == (), "nothing has been recorded yet"
    (folder / ORIGIN_FILE).unlink()
    (folder / "journal.log").write_text("of an older krscale")
    (line,) = start(experiment, folder)
    assert "nothing in it tells which images they are: taken to be those of today" in line
    assert (folder / ORIGIN_FILE).exists()
    assert start(experiment, folder) == ()
    (folder / ORIGIN_FILE).unlink()
    dataset = Setup.resolve(experiment, Silent()).dataset
    for data, is_other in (("another", True), (dataset.identity, False)):
        store = experiment.cache_path / "stores" / data
        store.mkdir(parents=True)
        (store / "manifest.json").write_text(json.dumps({"plan": {"key": {"data": data}}}))
        (line,) = start(experiment, folder)
        assert ("although no store that is kept is of these" in line) == is_other
        (folder / ORIGIN_FILE).unlink()
    start(experiment, folder, new_data=True)
    assert (folder / "earlier-1/journal.log").exists()


def spool(folder: Path, *known: str) -> None:
    """Write what an older krscale recorded for MLflow, among unreadable lines."""
    starts = [{"op": "start", "content": {"tags": {"krscale.data": name}}} for name in known]
    logs = [{"op": "log", "content": {"tags": {"krscale.data": "start"}}}, {"op": "spool"}]
    (folder / "tracking").mkdir(exist_ok=True)
    lines = [*map(json.dumps, [*logs, *starts]), '{"op":"start","krscale.data', "[]"]
    (folder / "tracking/spool.jsonl").write_text("\n".join(lines))


def test_an_older_run_tells_its_data_by_what_it_recorded(
    experiment: Experiment, folder: Path, images: Path
) -> None:
    dataset = Setup.resolve(experiment, Silent()).dataset
    (folder / "journal.log").write_text("of an older krscale")
    for known in ((dataset.identity,), (dataset.fingerprint, dataset.identity)):
        spool(folder, *known)
        assert start(experiment, folder) == ()
        (folder / ORIGIN_FILE).unlink()
    for file in images.rglob("*.png"):
        os.utime(file, ns=(1, 1))
    assert Setup.resolve(experiment, Silent()).dataset.identity != dataset.identity
    assert start(experiment, folder) == (), "the same images"
    (folder / ORIGIN_FILE).unlink()
    spool(folder, dataset.identity, "another")
    with pytest.raises(UserError, match="of other data"):
        start(experiment, folder)
    spool(folder, dataset.identity)
    (images / "ant/01.png").unlink()
    with pytest.raises(UserError, match="of other data"):
        start(experiment, folder)
    start(experiment, folder, new_data=True)
    assert (folder / "earlier-1/journal.log").exists()


def test_an_older_result_of_other_data_is_refused(
    experiment: Experiment, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Setup.resolve(experiment, Silent()).dataset
    (folder / "curve.json").write_text("{}")
    found = {"fingerprint": "another"}
    monkeypatch.setattr(older, "read_curve", lambda folder: SimpleNamespace(data=found))
    with pytest.raises(UserError, match="its result is of other data"):
        start(experiment, folder)
    for known in (dataset.fingerprint, dataset.identity):
        found["fingerprint"] = known
        assert start(experiment, folder) == ()
        (folder / ORIGIN_FILE).unlink()
    found["fingerprint"] = "another"
    start(experiment, folder, new_data=True)
    assert (folder / "earlier-1/curve.json").exists()


@pytest.mark.parametrize("moves", [0, 2])
@pytest.mark.parametrize("restored", [True, False])
def test_putting_aside_may_be_cut_short(
    experiment: Experiment, folder: Path, images: Path, monkeypatch, moves, restored
) -> None:
    start(experiment, folder)
    before = (folder / ORIGIN_FILE).read_bytes()
    results = ("a.json", "students.json", "zzz.json")
    for name in (*results, "experiment.json"):
        (folder / name).write_text("{}")
    pixels = (images / "ant/01.png").read_bytes()
    (images / "ant/01.png").unlink()
    rename, moved = Path.rename, []

    def stopping(path: Path, target: Path) -> Path:
        if len(moved) == moves:
            raise KeyboardInterrupt
        moved.append(path)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stopping)
    with pytest.raises(KeyboardInterrupt):
        start(experiment, folder, new_data=True)
    monkeypatch.undo()
    if restored:
        (images / "ant/01.png").write_bytes(pixels)
    with pytest.raises(UserError, match="being put aside in earlier-1"):
        bind_weights(folder, folder)
    (line,) = start(experiment, folder)
    assert "now all of them are in" in line
    for name in (*results, "splits.csv", "experiment.json"):
        assert (folder / "earlier-1" / name).exists()
    assert (folder / "earlier-1" / ORIGIN_FILE).read_bytes() == before
    assert not any((folder / name).exists() for name in results)
    assert ("ant/01.png" in split_list(folder)) == restored
    assert start(experiment, folder) == ()
    assert not (folder / "earlier-2").exists()


def test_a_split_list_that_is_missing_is_written(experiment: Experiment, folder: Path) -> None:
    start(experiment, folder)
    before = split_list(folder)
    (folder / "splits.csv").unlink()
    start(experiment, folder)
    assert split_list(folder) == before


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A teacher of the user's own, in two modules."""
    place = tmp_path / "code"
    place.mkdir()
    (place / "bound_net.py").write_text(NETWORK.format(parts="bound_parts"))
    (place / "bound_parts.py").write_text(PARTS.format(factor=1))
    monkeypatch.syspath_prepend(place)
    yield place
    for name in ("bound_net", "bound_parts"):
        sys.modules.pop(name, None)


def again(place: Path) -> None:
    """Load the modules as a new process would."""
    importlib.invalidate_caches()
    for name in ("bound_net", "bound_parts"):
        sys.modules.pop(name, None)


def test_other_code_is_another_teacher(experiment: Experiment, folder: Path, network: Path) -> None:
    own = with_values(experiment, {"teacher.model": "bound_net:Net", "teacher.options": {}}, "test")
    setup = Setup.resolve(own, Silent())
    bind(folder, setup)
    before = prepare_knowledge(setup, Silent())
    bind_weights(folder, Path(before.teacher_path))
    (network / "bound_parts.py").write_text("# said\n\n" + PARTS.format(factor=1))
    again(network)
    assert start(own, folder) == (), "a comment changes nothing"
    (network / "bound_parts.py").write_text(PARTS.format(factor=3))
    again(network)
    with pytest.raises(UserError, match="the code of teacher has changed: module bound_parts"):
        start(own, folder)
    now = prepare_knowledge(Setup.resolve(own, Silent()), Silent())
    assert now.teacher_path != before.teacher_path
    assert now.store_path != before.store_path
    start(own, folder, new_data=True)
    bind_weights(folder, Path(now.teacher_path))
    assert (folder / "earlier-1").is_dir()


def test_other_code_is_another_student(experiment: Experiment, folder: Path, network: Path) -> None:
    own = with_values(experiment, {"student.model": "bound_net:Net", "student.options": {}}, "test")
    start(own, folder)
    (network / "bound_parts.py").write_text(PARTS.format(factor=3))
    again(network)
    with pytest.raises(UserError, match="the code of student has changed: module bound_parts"):
        start(own, folder)


@pytest.mark.parametrize("network_of", ["teacher", "student"])
def test_a_student_is_not_trained_again_with_other_code(
    experiment: Experiment, folder: Path, network: Path, network_of: str
) -> None:
    values = {f"{network_of}.model": "bound_net:Net", f"{network_of}.options": {}}
    own = with_values(experiment, values, "test")
    data = Setup.resolve(own, Silent()).dataset
    check_networks(folder, own, data, "1/4")  # a run from before there was a record
    start(own, folder)
    check_networks(folder, own, data, "1/4")
    (network / "bound_parts.py").write_text(PARTS.format(factor=3))
    again(network)
    with pytest.raises(UserError, match=f"{network_of} has changed: module bound_parts") as error:
        check_networks(folder, own, data, "1/4")
    assert "pick without --refit" in str(error.value)


def test_other_preprocessing_that_a_network_says_of_itself(
    experiment: Experiment, folder: Path, network: Path
) -> None:
    """The attribute may come from a file beside the weights; code and outputs stay the same."""
    source = (network / "bound_net.py").read_text()
    said = """
        self.preprocessing = {{"mean": [{0}, {0}, {0}], "std": [0.5, 0.5, 0.5]}}
"""
    net = source.replace("        super().__init__()\n", "        super().__init__()\n" + said)
    (network / "bound_net.py").write_text(net.format(0.5))
    again(network)
    values = {
        f"{name}.{key}": value
        for name in ("teacher", "student")
        for key, value in (("model", "bound_net:Net"), ("options", {}))
    }
    own = with_values(experiment, values, "test")
    start(own, folder)
    assert start(own, folder) == ()
    (network / "bound_net.py").write_text(net.format(0.25))
    again(network)
    with pytest.raises(UserError) as error:
        start(own, folder)
    for table in ("teacher", "student"):
        assert f"the images of {table} were prepared as" in str(error.value)
    record = folder / ORIGIN_FILE
    content = json.loads(record.read_text())
    del content["sha256_of_above"], content["inputs"]
    (network / "bound_net.py").write_text(net.format(0.5))
    again(network)
    record.write_text(json.dumps(content))
    assert start(own, folder) == (), "an older krscale did not note it"


def test_weights_that_are_given(
    experiment: Experiment, folder: Path, network: Path, tmp_path: Path
) -> None:
    importlib.invalidate_caches()
    net = importlib.import_module("bound_net").Net
    files = {name: tmp_path / f"{name}.safetensors" for name in ("teacher", "small")}
    for file in files.values():
        save_weights(file, net(num_classes=3, in_channels=3, width=4))
    own = {"model": "bound_net:Net", "options": {}}
    student = {**own, "name": "small", "weights": str(files["small"])}
    values = {
        "teacher.model": own["model"],
        "teacher.options": {},
        "teacher.weights": str(files["teacher"]),
        "ladder.students": [student],
    }
    given = with_values(experiment, values, "test")
    start(given, folder)
    for name, table in (("small", r"ladder\.students\.small"), ("teacher", "teacher")):
        before = files[name].read_bytes()
        save_weights(files[name], net(num_classes=3, in_channels=3, width=4))
        with pytest.raises(UserError, match=f"the weights of {table} have changed"):
            start(given, folder)
        files[name].write_bytes(before)
        record = digest_path(files[name])
        with pytest.raises(UserError, match=rf"replaced on purpose, delete {record}"):
            start(given, folder)
        record.unlink()
        assert start(given, folder) == ()
        data = Setup.resolve(given, Silent()).dataset
        check_networks(folder, given, data, "small")
        save_weights(files[name], net(num_classes=3, in_channels=3, width=4))
        with pytest.raises(UserError, match=f"the weights of {table} have changed"):
            check_networks(folder, given, data, "small")
        files[name].write_bytes(before)
        record.unlink()
    (network / "bound_parts.py").write_text(PARTS.format(factor=3))
    again(network)
    with pytest.raises(UserError, match=r"the code of ladder\.students\.small has changed"):
        start(given, folder)


def test_other_weights_are_another_teacher(
    experiment: Experiment, folder: Path, tmp_path: Path
) -> None:
    setup = Setup.resolve(experiment, Silent())
    bind(folder, setup)
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "teacher.safetensors").write_bytes(b"one")
    bind_weights(folder, kept)
    bind_weights(folder, kept)
    bind(folder, setup)
    (kept / "teacher.safetensors").write_bytes(b"two")
    with pytest.raises(UserError, match="other weights than when the run began"):
        bind_weights(folder, kept)


def test_a_damaged_record_is_named(experiment: Experiment, folder: Path) -> None:
    start(experiment, folder)
    for content in ("{", "[]", '{"data": 3}'):
        (folder / ORIGIN_FILE).write_text(content)
        with pytest.raises(UserError, match=r"origin\.json: damaged"):
            start(experiment, folder)


def test_the_same_command_on_other_images(
    experiment: Experiment, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["distill", "--quiet", "--json"]
    for setting in (
        "data.source=image_folder",
        f"data.path={images}",
        f"storage_path={tmp_path / 'runs'}",
        "teacher.width=8",
        "teacher.num_epochs=1",
        "train.num_epochs=1",
        "train.global_batch_size=8",
        "views.num_views=1",
        "distill.capacity=1/4",
        "distill.probe_grid=1",
        "teacher.allow_poor=true",
        "tracking.enabled=false",
    ):
        arguments += ["--set", setting]
    assert main(arguments) == 0, capsys.readouterr().err
    before = json.loads(capsys.readouterr().out)
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == before, "it is shown again"
    for number in range(4):
        (images / f"cat/{number:02}.png").unlink()
    assert main(arguments) == 2
    assert "4 images removed (cat 4)" in capsys.readouterr().err
    assert main([*arguments, "--new-data"]) == 0
    (weights,) = (tmp_path / "runs").glob("*/student.safetensors")
    assert (weights.parent / "earlier-1" / weights.name).exists()
    assert main(arguments) == 0
    (weights.parent / ORIGIN_FILE).unlink()  # as in a run of an older krscale
    capsys.readouterr()
    assert main([*arguments]) == 0
    assert "older than the record of its data" in capsys.readouterr().err
    assert main([*arguments, "--new-data"]) == 0
    assert (weights.parent / "earlier-2" / weights.name).exists()


def unlabelled(folder: Path, number: int) -> Path:
    for seed in range(number):
        image(folder / f"{seed}.png", 5_000 + seed)
    return folder


def test_other_images_without_labels_are_refused_and_counted(
    experiment: Experiment, folder: Path, tmp_path: Path
) -> None:
    more = unlabelled(tmp_path / "more", 5)
    given = with_values(experiment, {"data.unlabelled": str(more)}, "test")
    assert start(given, folder) == ()
    record = json.loads((folder / ORIGIN_FILE).read_text())
    assert record["num_unlabelled"] == 5
    assert len(record["unlabelled"]) == 32
    for file in more.iterdir():
        os.utime(file, ns=(1, 1))
    assert start(given, folder) == ()
    unlabelled(more, 7)
    with pytest.raises(
        UserError, match=r"images without labels have changed \(5 then, 7 now\) since"
    ):
        start(given, folder)
    (note,) = start(given, folder, new_data=True)
    assert "(5 then, 7 now)" in note
    assert start(given, folder) == ()


def test_a_run_without_them_has_no_key_of_theirs(experiment: Experiment, folder: Path) -> None:
    start(experiment, folder)
    assert "unlabelled" not in (folder / ORIGIN_FILE).read_text()
