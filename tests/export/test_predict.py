"""The exported script gets the table's accuracy from raw files, without krscale or torch."""

import csv
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import own_teacher
import pytest
import torch
from PIL import Image
from pngs import GREY, RGB, png
from running import check_exports_here, environment
from tiffs import tiff

from krscale.config import Experiment, load, with_values
from krscale.data import Dataset, prepare_data
from krscale.data.content import SPLITS_FILE
from krscale.data.reading import walking
from krscale.data.reading.decoding import Decoder
from krscale.errors import UserError
from krscale.export import (  # fmt: skip
    StudentCard,
    checking,
    decoding_of,
    export_student,
    find_raw_files,
    open_student,
    read_card,
    writing,
)
from krscale.export.predict import (
    SYSTEM_FOLDERS,
    RefusedError,
    Student,
    UnreadableError,
    find_labelled,
    load_pixels,
)
from krscale.models.preprocessing import normalise, preprocessing_of_network
from krscale.parallel import Workers
from krscale.setup.network_builder import build_student
from krscale.training.checkpoint import load_weights
from krscale.training.loop import evaluate

HIDDEN = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "krscale"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory):
    """A student with 32x32 BGR inputs in 0..255, for files of 24x48 that are cut to 16x16."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("predict")
    own_teacher.write_folder(folder / "images", 240, 24, 48)
    settings = [setting.replace("teacher", "student", 1) for setting in own_teacher.SETTINGS]
    settings[0] = "student.model=own_teacher:Own"
    experiment = load(None, [
        "data.source=image_folder", f"data.path={folder / 'images'}", "data.files.image_size=16",
        f"storage_path={folder / 'runs'}", *settings,
    ])  # fmt: skip
    dataset = prepare_data(experiment.data, experiment.cache_path)
    network = build_student(experiment, dataset, 8).eval()
    load_weights(own_teacher.train(folder / "weights.safetensors", size=16), network)
    test = evaluate(network, dataset, dataset.split("test"), Workers.alone(torch.device("cpu")))
    inputs = preprocessing_of_network(network).resolved(dataset.mean, dataset.std)
    card = StudentCard(
        model="own_teacher:Own", width=8, options={}, num_parameters=1, flops=1,
        classes=dataset.classes, image_shape=dataset.image_shape,
        accuracy={"val": 0.9, "test": test["accuracy"]}, provenance={},
        decoding=decoding_of(experiment.data),
        **{name: getattr(inputs, name) for name in (
            "mean", "std", "pixel_range", "channel_order", "input_size", "interpolation")},
    )  # fmt: skip
    return experiment, dataset, network, card


@pytest.fixture(scope="module")
def exported(student, tmp_path_factory: pytest.TempPathFactory):
    experiment, dataset, network, card = student
    folder = tmp_path_factory.mktemp("exported") / "out"
    raw = find_raw_files(dataset, experiment.data, pytest.fail)
    formats = ["onnx", "safetensors"]
    with pytest.MonkeyPatch.context() as patch:
        check_exports_here(patch)
        return folder, export_student(network, card, dataset, folder, formats, raw)


def predict(folder: Path, *arguments: object) -> str:
    """Run the script where neither torch nor krscale can be imported."""
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN, str(folder / "predict.py"), *map(str, arguments)],
        env=environment(PYTHONPATH=""), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_proof_starts_from_files(student, exported) -> None:
    _, dataset, _, card = student
    _, files = exported
    assert [file.file for file in files] == [
        "student.onnx", "student.safetensors", "predict.py"
    ]  # fmt: skip
    assert card.test_accuracy > 0.6, "of images that it was not trained on: a student that knows"
    for file in files:
        assert file.test_accuracy == pytest.approx(card.test_accuracy, abs=1e-3)
    assert files[-1].max_difference == 0.0
    assert files[-1].num_compared == dataset.num_samples["test"]


def test_the_script_reproduces_the_table_from_raw_files(student, exported) -> None:
    experiment, dataset, _, card = student
    folder, _ = exported
    listed = ("--accuracy", dataset.path / SPLITS_FILE, "--root", experiment.data.path)
    expected = f"{card.test_accuracy:.4%} of {dataset.num_samples['test']} files are right\n"
    assert predict(folder, *listed) == expected


def test_the_script_classifies_files_and_folders(student, exported, tmp_path: Path) -> None:
    experiment, _, network, card = student
    folder, _ = exported
    own = Path(experiment.data.path) / own_teacher.NAMES[0]
    lines = list(csv.DictReader(predict(folder, own).splitlines()))
    assert [line["file"] for line in lines] == sorted(map(str, own.iterdir()))
    pixels = np.stack(
        [load_pixels(Path(x["file"]), card.content()["preprocessing"]) for x in lines]
    )
    with torch.no_grad():
        logits = network(card.prepare(torch.tensor(pixels)))
    answers = [card.classes[int(answer)] for answer in logits.argmax(dim=1)]
    assert [line["class"] for line in lines] == answers
    for line, chance in zip(lines, logits.softmax(dim=1).amax(dim=1), strict=True):
        assert float(line["probability"]) == pytest.approx(float(chance), abs=1e-3)
    again, _ = open_student(folder)
    torch.testing.assert_close(again(card.prepare(torch.tensor(pixels))).detach(), logits)


def modes(folder: Path) -> list[Path]:
    """Write image files of every common kind; return their paths."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    images = {
        "rgb.png": Image.fromarray(colours[..., :3]),
        "rgba.png": Image.fromarray(colours),
        "opaque.png": Image.fromarray(colours[..., :3]).convert("RGBA"),
        "grey.png": Image.fromarray(colours[..., 0]),
        "grey-alpha.png": Image.fromarray(colours[..., :2], "LA"),
        "palette.gif": Image.fromarray(colours[..., :3]).convert("P"),
        "photo.jpg": Image.fromarray(colours[..., :3]),
        "print.jpg": Image.fromarray(colours).convert("CMYK"),
        "bits.png": Image.fromarray(colours[..., 0]).convert("1"),
        "sign.ppm": Image.fromarray(colours[..., :3]),
        "face.pgm": Image.fromarray(colours[..., 0]),
        "scan.pbm": Image.fromarray(colours[..., 0]).convert("1"),
        "deep.pgm": Image.fromarray(random.integers(0, 65536, (20, 30), dtype=np.uint16)),
        "deep.png": Image.fromarray(random.integers(0, 65536, (20, 30), dtype=np.uint16)),
    }
    for name, image in images.items():
        image.save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    images["photo.jpg"].save(folder / "turned.jpg", exif=exif)
    for bits in (1, 2, 4, 8, 16):
        grey, colour = (random.integers(0, 2**bits, (20, 30, n), dtype=np.uint16) for n in (1, 3))
        (folder / f"key-{bits}.png").write_bytes(
            png(grey, GREY, key=tuple(grey[0, 0].tolist()), bits=bits)
        )
        if bits >= 8:
            (folder / f"keys-{bits}.png").write_bytes(
                png(colour, RGB, key=tuple(colour[0, 0].tolist()), bits=bits)
            )
    return sorted(folder.iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("background", ["white", "#204060", "ignore"])
@pytest.mark.parametrize(("num_channels", "image_size"), [(3, 0), (3, 16), (1, 16), (1, 40)])
def test_files_are_read_as_the_data_were(
    tmp_path: Path, background: str, num_channels: int, image_size: int, turned: bool
) -> None:
    data = load(None, [
        "data.source=image_folder", f"data.background={background}",
        f"data.files.exif_orientation={str(turned).lower()}",
        f"data.files.num_channels={num_channels}", f"data.files.image_size={image_size}",
    ]).data  # fmt: skip
    shape = (num_channels, image_size or 20, image_size or 30)
    preprocessing = {"image_shape": shape, "decoding": decoding_of(data)}
    for file in modes(tmp_path):
        expected = Decoder(data.files, background).decode(str(file)).pixels
        np.testing.assert_array_equal(load_pixels(file, preprocessing), expected, file.name)


def test_a_file_that_the_data_would_refuse_is_refused(tmp_path: Path) -> None:
    values = np.arange(5 * 6 * 3).reshape(5, 6, 3)
    preprocessing = {"image_shape": (3, 5, 6), "decoding": decoding_of(load().data)}
    for planes in (False, True):
        (tmp_path / "a.tiff").write_bytes(tiff(values << 8, 16, planes=planes))
        if planes:
            with pytest.raises(UnreadableError, match="16 bits a channel in separate planes"):
                load_pixels(tmp_path / "a.tiff", preprocessing)
        else:
            found = load_pixels(tmp_path / "a.tiff", preprocessing)
            np.testing.assert_array_equal(found, values.transpose(2, 0, 1))


@pytest.fixture(scope="module")
def script(exported) -> Callable[..., int]:
    """Return the exported script as a function: arguments -> exit code."""
    spec = importlib.util.spec_from_file_location("exported_predict", exported[0] / "predict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *arguments: module.main([str(argument) for argument in arguments])


@pytest.fixture
def held_out(student, tmp_path: Path) -> Path:
    """Two images of each of two classes, in one folder per class."""
    images = Path(student[0].data.path)
    for name in own_teacher.NAMES[:2]:
        (tmp_path / "held out" / name).mkdir(parents=True)
        for file in sorted((images / name).iterdir())[:2]:
            shutil.copy(file, tmp_path / "held out" / name)
    return tmp_path / "held out"


def test_only_images_of_class_folders_are_counted(script, held_out: Path, capsys) -> None:
    assert script("--accuracy", held_out) == 0
    expected = capsys.readouterr().out
    assert expected.endswith(" of 4 files are right\n")
    one = next(held_out.rglob("*.png"))
    for hidden in (
        one.parent / "._a.png",
        held_out / ".trash" / "a.png",
        held_out / "__MACOSX" / "a.png",
    ):
        hidden.parent.mkdir(exist_ok=True)
        hidden.write_bytes(b"")
    (held_out / "notes.txt").write_text("notes")
    shutil.move(one.parent, held_out.parent / "elsewhere")
    one.parent.symlink_to(held_out.parent / "elsewhere")  # followed, as in data preparation
    (held_out / "itself").symlink_to(held_out)
    assert script("--accuracy", held_out) == 0
    assert capsys.readouterr().out == expected
    shutil.copy(one, held_out / "stray.png")
    assert script("--accuracy", held_out) == 2
    assert "stray.png: in no class folder" in capsys.readouterr().err


def test_system_folders_are_those_of_the_data() -> None:
    assert set(SYSTEM_FOLDERS) == walking.SYSTEM_FOLDERS


LISTS = {
    "no columns.csv": "file,class\na.png,red disc\n",
    "other.csv": "path,label\na.png,red disk\n",
    "short.csv": "path,label\na.png\n",
    "val.csv": "path,label,split\na.png,red disc,val\n",
    "bytes.csv": "\0\0",
    "none.csv": "path,label\n",
}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--accuracy", "a.png", "b.png"], "takes one folder or list, not 2: a.png, b.png"),
        (["--accuracy", "a.png"], "a.png: an image; --accuracy takes a folder or a CSV list"),
        (["--accuracy", "nosuch.csv"], "nosuch.csv: No such file"),
        (["--accuracy", "no columns.csv"], "no column path, label; it has file, class"),
        (
            ["--accuracy", "other.csv"],
            "no class of the student: 'red disk' (did you mean 'red disc",
        ),
        (["--accuracy", "short.csv"], "short.csv: a line without path or label: a.png"),
        (["--accuracy", "val.csv"], "val.csv: no line of the split 'test'"),
        (["--accuracy", "other.csv", "--split", "test"], "other.csv: no column split"),
        (["--accuracy", "bytes.csv"], "bytes.csv: "),
        (["--accuracy", "none.csv"], "none.csv: it has no line below that of the columns"),
        (["--accuracy", "held out", "--split", "val"], "are for a list of files"),
        (["a.png", "--root", "x"], "go with --accuracy"),
        (["aa.png"], "aa.png: no such file or folder (did you mean 'a.png'?)"),
        (["empty"], "empty: no image files there"),
        (["gone.png"], "gone.png: a link to something that is not there."),
    ],
)
def test_what_cannot_be_used_is_one_line(
    script, held_out: Path, monkeypatch, capsys, arguments: list[str], words: str
) -> None:
    folder = held_out.parent
    (folder / "empty").mkdir()
    (folder / "gone.png").symlink_to("nowhere.png")
    for name in ("a.png", "b.png"):
        shutil.copy(next(held_out.rglob("*.png")), folder / name)
    for name, text in LISTS.items():
        (folder / name).write_text(text)
    monkeypatch.chdir(folder)
    assert script(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("predict.py: ")
    assert words in err
    assert err.count("\n") == 1


def test_files_that_cannot_be_read_are_named_together(script, held_out: Path, capsys) -> None:
    folder = held_out / own_teacher.NAMES[0]
    good = sorted(folder.iterdir())
    (folder / "empty.png").write_bytes(b"")
    (folder / "half.png").write_bytes(good[0].read_bytes()[:-400])
    assert script(folder) == 1
    out, err = capsys.readouterr()
    assert [line["file"] for line in csv.DictReader(out.splitlines())] == list(map(str, good))
    assert err.startswith("predict.py: 2 of 4 files cannot be read:\n")
    assert "empty.png: not one of PNG" in err
    assert "half.png: " in err
    assert script("--accuracy", held_out) == 1
    out, err = capsys.readouterr()
    assert out == "", "the share of the others is another number"
    assert "2 of 6 files cannot be read" in err
    assert script(folder / "empty.png") == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_link_to_nothing_is_not_left_out_in_silence(script, held_out: Path, capsys) -> None:
    gone = held_out / own_teacher.NAMES[0] / "gone.png"
    gone.symlink_to("nowhere.png")
    assert script("--accuracy", held_out) == 1
    assert "gone.png: No such file" in capsys.readouterr().err
    gone.unlink()
    (held_out / own_teacher.NAMES[2]).symlink_to("nowhere")
    assert script("--accuracy", held_out) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{own_teacher.NAMES[2]}: a link to something that is not there; it may be" in err


def test_whole_numbers_with_a_point_are_classes_or_their_numbers(
    exported, held_out: Path, tmp_path: Path
) -> None:
    student = Student(exported[0])
    numbers = {name: number for number, name in enumerate(student.classes)}
    files = sorted(held_out.rglob("*.png"))
    expected = student.accuracy([(file, file.parent.name) for file in files])
    lines = [f"{file},{numbers[file.parent.name]}.0" for file in files]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
    labelled = find_labelled(tmp_path / "list.csv", None, None)
    for end in ("", ".0"):
        student.classes = [f"{number}{end}" for number in numbers.values()]
        assert student.accuracy(labelled) == expected


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_nothing_waits_for_a_named_pipe(
    script, exported, held_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "a.png"
    os.mkfifo(pipe)
    assert script(pipe) == 1
    assert "a.png: it is a named pipe" in capsys.readouterr().err
    os.mkfifo(tmp_path / "list.csv")
    assert script("--accuracy", tmp_path / "list.csv") == 2
    assert "list.csv: it is a named pipe" in capsys.readouterr().err
    os.mkfifo(tmp_path / "student.json")
    with pytest.raises(RefusedError, match=r"student\.json: cannot be read: it is a named pipe"):
        Student(tmp_path)


@pytest.mark.parametrize("name", ["student.json", "student.onnx"])
def test_a_file_that_has_grown_is_not_read(exported, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(exported[0], tmp_path / "out")
    os.truncate(folder / name, 10**12)
    with pytest.raises(RefusedError, match=rf"{name}: .*damaged: larger than"):
        Student(folder)


def test_names_of_strangers_files(
    script, held_out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal gets no control characters; a program reading the table gets the exact bytes."""
    folder = held_out / own_teacher.NAMES[0]
    content = sorted(folder.iterdir())[0].read_bytes()
    names = [b"a\x1b[2J.png", b"b\xe2\x80\xaeb.png", b"c\x9b.png", b"d\xff.png", b"e\r.png"]
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(content)
    Path(folder / "f\x1b[31m.png").write_bytes(b"")
    marks = (b"\x1b", b"\x9b", "\u202e".encode(), b"\r")

    def printed(terminal: bool) -> bytes:
        stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
        with monkeypatch.context() as patch:
            patch.setattr(stream, "isatty", lambda: terminal)
            patch.setattr(sys, "stdout", stream)
            assert script(folder) == 1
        return stream.buffer.getvalue()

    table = printed(terminal=False)
    assert all(name in table for name in names)
    err = capsys.readouterr().err.encode()
    assert "f\N{REPLACEMENT CHARACTER}[31m.png: ".encode() in err
    shown = printed(terminal=True)
    assert shown.count(b"\n") == table.count(b"\n")
    assert not any(mark in shown + err for mark in marks)


def test_what_the_encoding_of_stdout_lacks_is_escaped(
    script, tmp_path: Path, held_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = next(file for file in held_out.rglob("*.png") if file.stat().st_size)
    name = b"\xff\xc3\xa9.png"  # bytes that are no text, then an é
    shutil.copy(source, os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert script(tmp_path) == 0
    assert b"\xff\\xe9.png," in stream.buffer.getvalue()


def test_a_reader_that_has_seen_enough_is_no_error(exported, held_out: Path) -> None:
    reading, writing_end = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, str(exported[0] / "predict.py"), str(held_out)],
        stdout=writing_end, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    os.close(writing_end)
    assert (done.returncode, done.stderr) == (141, "")


def test_an_export_that_is_not_whole_is_said(exported, tmp_path: Path) -> None:
    script = shutil.copy(exported[0] / "predict.py", tmp_path)
    for copied, words in (
        (None, "student.json: cannot be read"),
        ("student.json", "student.onnx: not"),
    ):
        if copied:
            shutil.copy(exported[0] / copied, tmp_path)
        done = subprocess.run(
            [sys.executable, script, "a.png"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_pixels_that_were_divided_already_are_refused(student, exported) -> None:
    _, dataset, _, _ = student
    exported_student, pixels = Student(exported[0]), dataset.split("val").images[:2]
    assert exported_student.logits(list(pixels)).shape == (2, len(dataset.classes))
    with pytest.raises(RefusedError, match=r"pixels are uint8 in 0\.\.255, not float32"):
        exported_student.logits(list(pixels.astype(np.float32) / 255))


def test_no_file_has_no_accuracy(exported) -> None:
    with pytest.raises(RefusedError, match="no labelled file"):
        Student(exported[0]).accuracy([])


def test_a_file_of_another_size_is_refused_where_none_was_scaled(tmp_path: Path) -> None:
    Image.new("RGB", (8, 9)).save(tmp_path / "small.png")
    preprocessing = {
        "image_shape": (3, 16, 16), "decoding": {"background": "white", "scaled": False}
    }  # fmt: skip
    with pytest.raises(UnreadableError, match=r"small\.png: 9x8 pixels, the student takes 16x16"):
        load_pixels(tmp_path / "small.png", preprocessing)


def test_files_that_changed_since_are_refused(student, exported, tmp_path: Path) -> None:
    experiment, dataset, _, card = student
    raw = find_raw_files(dataset, experiment.data, pytest.fail)
    other = tmp_path / "other.png"
    Image.new("RGB", (48, 24), (9, 200, 9)).save(other)
    changed = replace(raw, files=(str(other), *raw.files[1:]))
    test = dataset.split("test")
    same = checking._check_raw(exported[0], asdict(raw), test, ["safetensors"])
    assert same["max_difference"] == 0.0
    assert same["test_accuracy"] == pytest.approx(card.test_accuracy)
    found = checking._check_raw(exported[0], asdict(changed), test, ["safetensors"])
    with pytest.raises(UserError, match=r"predict\.py: a file of the test split has other pixels"):
        writing._proven(tmp_path, writing.PREDICT, found, card, 1e-4)


def test_files_that_are_gone_are_said_and_no_error(student, tmp_path: Path) -> None:
    experiment, dataset, _, _ = student
    notes: list[str] = []
    moved = experiment.data.model_copy(update={"path": str(tmp_path)})
    assert find_raw_files(dataset, moved, notes.append) is None
    assert notes == [], "the whole folder is elsewhere"
    first = Path(find_raw_files(dataset, experiment.data, notes.append).files[0])
    first.rename(tmp_path / "away.png")
    try:
        assert find_raw_files(dataset, experiment.data, notes.append) is None
    finally:
        (tmp_path / "away.png").rename(first)
    assert len(notes) == 1
    assert "1 of" in notes[0]


def test_images_that_are_no_files_have_none(tmp_path: Path) -> None:
    experiment: Experiment = load(None, [f"storage_path={tmp_path}"])
    dataset: Dataset = prepare_data(experiment.data, experiment.cache_path)
    assert find_raw_files(dataset, experiment.data, pytest.fail) is None
    raw = with_values(experiment, {"data.source": "parquet", "data.path": "a.parquet"}, "test")
    assert decoding_of(raw.data)["scaled"] is False
    raw = with_values(raw, {"data.files.raw_shape": (3, 8, 8)}, "test")
    assert decoding_of(raw.data)["scaled"] is True
    assert decoding_of(experiment.data)["scaled"] is True
    assert json.dumps(decoding_of(experiment.data))


def test_a_card_of_an_older_krscale_is_read(student, tmp_path: Path) -> None:
    _, _, _, card = student
    content = card.content()
    for name in ("decoding", "pixel_range", "channel_order", "input_size", "interpolation"):
        del content["preprocessing"][name]
    (tmp_path / "student.json").write_text(json.dumps(content), encoding="utf-8")
    read = read_card(tmp_path)
    assert (read.mean, read.std) == (card.mean, card.std)
    pixels = torch.arange(3 * 256, dtype=torch.uint8).view(1, 3, 16, 16)
    expected = normalise(pixels, card.mean, card.std)
    torch.testing.assert_close(read.prepare(pixels), expected, rtol=0, atol=0)
