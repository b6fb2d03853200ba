"""Exports of a real student: verified, readable by other programs, refused when they differ."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from running import environment
from torch import nn

import krscale.export.writing as writing
from krscale.data import Dataset, open_data, prepare_data
from krscale.errors import UserError
from krscale.export import (
    FORMATS,
    StudentCard,
    check_formats,
    check_target,
    decoding_of,
    export_student,
    open_student,
)
from krscale.export.card import check_exported
from krscale.export.writing import allowed_difference
from krscale.files import write_json
from krscale.report import read_curve
from krscale.runs.experiment_file import read_experiment
from krscale.runs.folder import student_path
from krscale.setup.network_builder import build_student
from krscale.training.checkpoint import load_weights

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/export.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)

# One process classifies both images, because its imports take seconds.
EACH_FOLDER = """
import os, sys
top, folders = os.getcwd(), sys.argv[1].split(",")
for block in sys.argv[2:]:
    for folder in folders:
        os.chdir(os.path.join(top, folder))
        exec(compile(block, "docs/export.md", "exec"), {"__name__": "__main__"})
"""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def original(finished_run: Path) -> tuple[nn.Module, StudentCard, Dataset]:
    experiment, size = read_experiment(finished_run), read_curve(finished_run).sizes[1]
    dataset = prepare_data(experiment.data, experiment.cache_path)
    result = size.methods["kr"]
    student = build_student(experiment, dataset, size.width)
    load_weights(student_path(finished_run, "kr", size.capacity, result.seeds[0]), student)
    card = StudentCard(
        model=experiment.student.model,
        width=size.width,
        options=experiment.student.options,
        num_parameters=size.num_parameters,
        flops=size.flops,
        classes=dataset.classes,
        image_shape=dataset.image_shape,
        mean=dataset.mean,
        std=dataset.std,
        decoding=decoding_of(experiment.data),
        accuracy={"val": result.val_accuracies[0], "test": result.test_accuracies[0]},
        provenance={"run": "tiny"},
    )
    return student.eval(), card, dataset


@pytest.fixture(scope="module")
def exported(original, tmp_path_factory) -> tuple[Path, tuple]:
    student, card, dataset = original
    folder = tmp_path_factory.mktemp("exported") / "out"
    return folder, export_student(student, card, dataset, folder, list(FORMATS))


def exact_logits(student: nn.Module, card: StudentCard, images: np.ndarray) -> np.ndarray:
    """Return logits in float64, with the normalisation written out."""
    mean, std = (np.reshape(values, (1, -1, 1, 1)) for values in (card.mean, card.std))
    normalised = torch.from_numpy((images.astype(np.float64) / 255 - mean) / std)
    double = copy.deepcopy(student).double()
    with torch.no_grad():
        return double(normalised).numpy()


def test_every_file_is_proven_and_reaches_the_table(original, exported) -> None:
    _, card, dataset = original
    folder, files = exported
    assert {path.name for path in folder.iterdir()} == {
        "student.json", "predict.py", *(format.file for format in FORMATS.values())
    }  # fmt: skip
    for file in files:
        assert file.test_accuracy == card.test_accuracy
        assert 0.0 <= file.max_difference < 1e-4
        assert file.num_compared == min(512, dataset.num_samples["val"])
        assert file.num_bytes == (folder / file.file).stat().st_size
    listed = json.loads((folder / "student.json").read_text())["files"]
    assert [entry["format"] for entry in listed] == list(FORMATS)


@pytest.mark.parametrize("name", ["student.onnx", "student.safetensors", "predict.py"])
def test_a_file_that_has_grown_is_refused_without_reading_it(exported, tmp_path, name) -> None:
    folder = shutil.copytree(exported[0], tmp_path / "out")
    check_exported(folder)
    os.truncate(folder / name, 10**12)
    with pytest.raises(UserError, match=rf"{name}: damaged: it has 1000000000000 bytes, "):
        check_exported(folder)
    card = json.loads((folder / "student.json").read_text())
    for file in (*card["files"], card["script"]):
        file.pop("num_bytes", None)  # an older krscale did not record it
    write_json(folder / "student.json", card)
    if name == "predict.py":
        with pytest.raises(UserError, match=rf"{name}: damaged: it has 1000000000000 bytes, "):
            check_exported(folder, name)


def test_onnx_takes_any_batch_of_pixels_in_0_to_1(original, exported) -> None:
    student, card, dataset = original
    path = str(exported[0] / "student.onnx")
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type, entry.shape) == ("images", "tensor(float)", ["batch", 1, 8, 8])
    images = dataset.split("test").images
    for size in (1, 3, 450):
        (logits,) = session.run(None, {"images": images[:size].astype(np.float32) / 255})
        expected = exact_logits(student, card, images[:size])
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    held = json.loads(session.get_modelmeta().custom_metadata_map["krscale"])
    assert held["classes"] == list(dataset.classes)
    assert held["provenance"] == {"run": "tiny"}


def test_no_file_tells_where_it_was_made(exported) -> None:
    folder, _ = exported
    root = str(DOCUMENT.parents[1]).encode()
    for path in folder.iterdir():
        content = path.read_bytes()
        assert root not in content, path.name
        assert str(Path(torch.__file__).parent).encode() not in content, path.name


def test_a_student_comes_back_as_a_module(original, exported) -> None:
    student, card, dataset = original
    again, read = open_student(exported[0])
    assert replace(read, provenance=card.provenance) == card
    assert not again.training
    images = dataset.split("val").images[:5]
    np.testing.assert_allclose(
        exact_logits(again, read, images), exact_logits(student, card, images), rtol=0, atol=0
    )


@pytest.mark.parametrize("kind", ["divided", "of another size", "one image"])
def test_a_card_prepares_pixels_of_its_own_shape_alone(kind: str, original) -> None:
    _, card, dataset = original
    pixels = torch.tensor(dataset.split("val").images[:2])
    wrong = {"divided": pixels / 255, "of another size": pixels[..., 1:], "one image": pixels[0]}
    card.prepare(pixels)
    with pytest.raises(UserError, match=r"prepares uint8 images \[B, "):
        card.prepare(wrong[kind])


@pytest.mark.parametrize("shown", [BLOCKS[:1], BLOCKS[1:]], ids=["onnx", "pt2 and module"])
def test_examples_of_the_document_run(shown: list[str], original, exported, tmp_path) -> None:
    student, card, dataset = original
    assert len(BLOCKS) == 3
    # Two images with different answers, so that an example that ignores its image fails.
    images = dataset.split("val").images
    answers = exact_logits(student, card, images).argmax(axis=1)
    indices = (0, int(np.flatnonzero(answers != answers[0])[0]))
    for index in indices:
        folder = tmp_path / str(index)
        folder.mkdir()
        for file in exported[0].iterdir():
            (folder / file.name).symlink_to(file)
        Image.fromarray(images[index, 0]).save(folder / "image.png")
    done = subprocess.run(
        [sys.executable, "-c", EACH_FOLDER, ",".join(map(str, indices)), *shown], cwd=tmp_path,
        env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = [card.classes[answers[index]] for index in indices]
    assert done.stdout.split() == said * len(shown)


class Frozen(nn.Module):
    """Branches on the values of its images, which no exported graph can represent."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scale = 2.0 if images.sum() > 0 else 1.0
        return images.flatten(1)[:, :10] * scale


@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_a_network_that_no_graph_can_hold_is_explained(name, original, tmp_path) -> None:
    _, card, dataset = original
    with pytest.raises(UserError, match=rf"^{name}: torch cannot export.*safetensors always works"):
        export_student(Frozen(), card, dataset, tmp_path / "out", [name])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("checked_here")
def test_another_accuracy_than_the_table_keeps_the_earlier_export(
    original, exported, tmp_path
) -> None:
    student, card, dataset = original
    folder = tmp_path / "out"
    shutil.copytree(exported[0], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    wrong = replace(card, accuracy={**card.accuracy, "test": card.test_accuracy + 0.01})
    with pytest.raises(UserError, match=r"reaches 0\.\d+ on test, the run's table has 0\.\d+"):
        export_student(student, wrong, dataset, folder, ["safetensors"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("checked_here")
def test_other_logits_than_the_original_are_refused(original, tmp_path, monkeypatch) -> None:
    student, card, dataset = original

    before = FORMATS["safetensors"]

    def write_disturbed(student: nn.Module, card: StudentCard, path: Path) -> None:
        disturbed = copy.deepcopy(student)
        with torch.no_grad():
            next(disturbed.parameters()).mul_(1.001)
        before.write(disturbed, card, path)

    monkeypatch.setitem(FORMATS, "safetensors", replace(before, write=write_disturbed))
    with pytest.raises(UserError, match="logits differ from the original's by up to"):
        export_student(student, card, dataset, tmp_path / "out", ["safetensors"])


def test_difference_that_is_not_a_number_is_refused(original, tmp_path) -> None:
    _, card, _ = original
    found = {"max_difference": float("nan"), "test_accuracy": 0.5, "undecided": 0.0}
    with pytest.raises(UserError, match="differ from the original's by up to nan"):
        writing._proven(tmp_path, "pt2", found, card, 1e-4)


def test_missing_package_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"'onnxscript'.*krscale\[export\].*safetensors,pt2"):
        check_formats(["safetensors", "onnx"])
    check_formats(["safetensors", "pt2"])


def test_unknown_or_no_format(original) -> None:
    with pytest.raises(UserError, match=r"unknown format 'onx'\. Did you mean 'onnx'"):
        check_formats(["onx"])
    with pytest.raises(UserError, match="at least one format"):
        check_formats([])


def test_folder_of_something_else_is_not_replaced(original, tmp_path) -> None:
    student, card, dataset = original
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="not an export of krscale; it would be replaced"):
        export_student(student, card, dataset, tmp_path, ["safetensors"])
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["photo.jpg", ".git", "experiment.json", "curve.csv"])
def test_what_lies_beside_an_export_is_not_replaced(name, original, exported, tmp_path) -> None:
    """The run folder of `krscale distill` also has a `student.json`."""
    student, card, dataset = original
    folder = shutil.copytree(exported[0], tmp_path / "ship")
    (folder / "__pycache__").mkdir()
    for left in (".DS_Store", "._student.onnx", "Thumbs.db", "desktop.ini"):  # not user files
        (folder / left).write_text("")
    check_target(folder)
    (folder / name).write_text("mine")
    with pytest.raises(UserError, match=rf"holds more than an export .*\({re.escape(name)}\)"):
        export_student(student, card, dataset, folder, ["safetensors"])
    assert (folder / name).read_text() == "mine"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not an export of krscale; it would be replaced"):
        check_target(tmp_path / "pipe")


def test_broken_or_missing_card(exported, tmp_path) -> None:
    with pytest.raises(UserError, match=r"not an export: it has no student\.json"):
        open_student(tmp_path)
    (tmp_path / "student.json").write_text('{"format": 1, "architecture": {}}')
    with pytest.raises(UserError, match=r"student\.json: damaged"):
        open_student(tmp_path)


def test_images_of_another_data_set_are_refused(original, tmp_path) -> None:
    student, card, dataset = original
    other = replace(open_data(dataset.path), classes=tuple("abcdefghij"))
    with pytest.raises(UserError, match="not those of the student"):
        export_student(student, card, other, tmp_path / "out", ["safetensors"])


class InFewerDigits(nn.Module):
    """A student that computes in fp16 or bf16."""

    def __init__(self, student: nn.Module, kind: torch.dtype) -> None:
        super().__init__()
        self.student, self.kind = copy.deepcopy(student).to(kind), kind

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.student(images.to(self.kind))


def of_fewer_digits(original, kind: torch.dtype) -> tuple[nn.Module, StudentCard, Dataset]:
    student, card, dataset = original
    rounded = InFewerDigits(student, kind).eval()
    test = dataset.split("test")
    with torch.no_grad():
        answers = rounded(card.prepare(torch.tensor(test.images))).argmax(dim=1).numpy()
    accuracy = {"val": None, "test": float((answers == test.labels).mean())}
    return rounded, replace(card, accuracy=accuracy), dataset


@pytest.mark.usefixtures("checked_here")
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_student_of_fewer_digits_gives_logits_in_fp32(kind, original, tmp_path) -> None:
    student, card, dataset = of_fewer_digits(original, kind)
    formats = ["pt2"] if kind == torch.bfloat16 else ["pt2", "onnx"]
    files = export_student(student, card, dataset, tmp_path / "out", formats)
    # Two logits of an image may be equal up to rounding.
    accuracies = [file.test_accuracy for file in files]
    assert accuracies == pytest.approx([card.test_accuracy] * len(files), abs=0.02)
    graph = torch.export.load(tmp_path / "out/student.pt2").module()
    images = torch.tensor(dataset.split("val").images[:3]) / 255
    assert graph(images).dtype == torch.float32
    if "onnx" in formats:
        path = str(tmp_path / "out/student.onnx")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert session.run(None, {"images": images.numpy()})[0].dtype == np.float32


def test_the_tolerance_is_that_of_the_fewest_digits(original) -> None:
    student, _, _ = original
    logits = torch.tensor([[0.0, 5.0], [-20.0, 5.0]])
    coarse = InFewerDigits(student, torch.bfloat16)
    assert allowed_difference(student, logits) == pytest.approx(20 * 1e-4)
    assert allowed_difference(student, logits / 100) == pytest.approx(1e-4)
    assert allowed_difference(coarse, logits) == pytest.approx(20 * 4 * 2**-7)
    assert allowed_difference(student, logits.half()) == pytest.approx(20 * 4 * 2**-10)


def test_what_onnx_cannot_express_is_explained(original, tmp_path) -> None:
    student, card, dataset = of_fewer_digits(original, torch.bfloat16)
    with pytest.raises(UserError, match=r"^onnx: opset 18 cannot.*bfloat16\. Leave this"):
        export_student(student, card, dataset, tmp_path / "out", ["onnx"])
    assert list(tmp_path.iterdir()) == []
