"""Every mistake a user can make at a command: one clear error, exit code 2, no traceback."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from running import overrides

from krscale.cli.app import main
from krscale.cluster import train
from krscale.errors import UserError
from krscale.runs import distill
from krscale.search.on_ray import group_resources

pytestmark = pytest.mark.timeout(120)


def refuse(capsys: pytest.CaptureFixture[str], command: str, storage: Path, *settings: str) -> str:
    """Run a command in this process and return its whole error."""
    arguments = overrides("teacher.num_epochs=1", f"storage_path={storage}", *settings)
    code = main([command, *arguments])
    printed = capsys.readouterr()
    assert code == 2, printed.err
    assert printed.out == ""
    assert "Traceback" not in printed.err
    lines = printed.err.splitlines()
    errors = [line.removeprefix("krscale: error: ") for line in lines if ": error: " in line]
    assert 1 <= len(errors) <= 3, printed.err
    return "\n".join(errors)


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("train.num_epoch=3", ["Did you mean 'train.num_epochs'"]),
        ("train.num_epochs=-1", ["greater than or equal to 1", "got -1"]),
        ("search.methods=['plain', 'kdd']", ["search.methods", "'kdd'", "Did you mean 'kd'"]),
        (
            "distill.posterior={dkdd=1.0}",
            ["distill.posterior", "Did you mean 'distill.posterior.dkd'"],
        ),
        ("search.methods=['kr+dkdd']", ["search.methods", "'dkdd'", "Did you mean 'dkd'"]),
        ("distill.method=kd+dkd", ["distill.method", "cannot be combined"]),
        ("teacher.model=resent", ["teacher", "'resent'", "Did you mean 'resnet'"]),
        ("student.model=no_such_package:net", ["student", "no_such_package"]),
        ("student.options={num_block=1}", ["student.options", "Did you mean 'num_blocks'"]),
        ("teacher.taps=['stages.0.9']", ["teacher.taps", "'stages.0.9'", "Did you mean"]),
        ("search.space=nowhere.toml", ["search.space", "nowhere.toml"]),
        ("data.source=digit", ["data.source", "Did you mean 'digits'"]),
        ("views.jitter=0.5", ["jitter", "RGB"]),
        ("ladder.capacities=['1/4', '0.2501']", ["ladder.capacities", "width"]),
        ("student.width_multiple=0", ["student.width_multiple", "greater than or equal to 1"]),
        ("student.width_multiple=64", ["of multiples of student.width_multiple = 64"]),
        ("tracking.uri=ftp://host", ["tracking.uri", "ftp"]),
    ],
)
def test_tune_refuses_before_anything_trains(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, setting: str, parts: list[str]
) -> None:
    error = refuse(capsys, "tune", tmp_path, setting)
    for part in parts:
        assert part in error
    assert not (tmp_path / "cache" / "teachers").exists()


def test_workers_of_a_trial_that_would_share_a_gpu_are_refused_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = refuse(capsys, "tune", tmp_path, "train.num_workers=2", "search.gpus_per_trial=0.5")
    for part in ("search.gpus_per_trial", "a GPU of its own", "2 workers a trial", "0.5"):
        assert part in error


@pytest.mark.parametrize(
    ("command", "setting", "asked"),
    [
        (
            "tune",
            "search.cpus_per_trial=64",
            "search.cpus_per_trial, search.gpus_per_trial: 64 CPU",
        ),
        ("tune", "search.gpus_per_trial=0.5", "gpus_per_trial: 1 CPU, 0.5 GPU"),
        ("tune", "train.num_workers=64", "train.num_workers, search.cpus_per_trial"),
        ("distill", "train.num_workers=64", "train.num_workers: 1 CPU, 64 times"),
    ],
)
def test_more_than_the_cluster_has_is_refused_before_the_teacher_trains(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    setting: str,
    asked: str,
) -> None:
    def require(each: Mapping[str, float], _: object, where: str, count: int = 1) -> None:
        resources = ", ".join(f"{amount:g} {name}" for name, amount in each.items())
        raise UserError(f"{where}: {resources}, {count} times: no room")

    for module in (group_resources, train):
        monkeypatch.setattr(module, "require", require)
    for module in (group_resources, distill):
        monkeypatch.setattr(module, "connect", lambda _config: None)
    error = refuse(capsys, command, tmp_path, setting, "train.device=cpu", "tracking.enabled=false")
    assert asked in error
    assert "no room" in error
    assert not (tmp_path / "cache" / "teachers").exists()


def test_student_taps_are_refused_before_anything_trains(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = refuse(capsys, "tune", tmp_path, "student.taps=['stages.7']")
    assert "student.taps" in error
    assert "'stages.7'" in error
    assert not (tmp_path / "cache" / "teachers").exists()


def test_features_that_cannot_be_compared_are_refused_before_anything_trains(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = ("search.methods=['at']", "student.options={num_blocks=1, num_stages=2}")
    error = refuse(capsys, "tune", tmp_path, *settings)
    assert "method 'at': stage 1 of the student has maps of 8x8, stage 2" in error
    assert "of 4x4" in error
    assert not (tmp_path / "cache" / "teachers").exists()


@pytest.mark.parametrize("command", ["tune", "teach", "distill"])
@pytest.mark.parametrize("network", ["teacher", "student"])
def test_batches_of_one_image_are_refused_before_anything_trains(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, network: str
) -> None:
    settings = (f"{network}.model=narrow_student:Narrow", f"{network}.options={{}}")
    error = refuse(
        capsys,
        command,
        tmp_path,
        *settings,
        "train.global_batch_size=2",
        "ladder.capacities=['1/2']",
    )
    assert f"{network}: batch norm 'first.1'" in error
    assert "train.global_batch_size = 2: 1077 training images" in error
    assert not (tmp_path / "cache" / "teachers").exists()


def test_a_searched_batch_size_is_checked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    space = tmp_path / "space.toml"
    space.write_text('[plain."train.global_batch_size"]\ntype = "int"\nlow = 2\nhigh = 64\n')
    settings = (
        "student.model=narrow_student:Narrow",
        "student.options={}",
        "search.methods=['plain']",
    )
    error = refuse(capsys, "tune", tmp_path, *settings, f"search.space={space}")
    assert "train.global_batch_size = 2" in error


def test_missing_experiment_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "jobs/digit.toml"]) == 2
    error = capsys.readouterr().err
    assert "jobs/digit.toml: no such file. Did you mean jobs/digits.toml?" in error


def test_granularity_beyond_the_taps(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = refuse(capsys, "distill", tmp_path, "distill.granularity=40")
    assert "granularity 40 is out of range: the teacher has 6 taps" in error


@pytest.mark.parametrize("content", ["text", "list", "other model"])
def test_teacher_file_that_cannot_serve(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str
) -> None:
    path = tmp_path / "teacher.pt"
    if content == "text":
        path.write_text("not weights")
    elif content == "list":
        torch.save([torch.zeros(3)], path)
    else:
        torch.save({"classifier.weight": torch.zeros(7, 3)}, path)
    error = refuse(capsys, "teach", tmp_path, f"teacher.weights={path}")
    assert "teacher.weights" in error
    assert "teacher.pt" in error
    if content == "other model":
        assert "[7, 3]" in error, "both shapes are named"


def test_teacher_file_with_code_is_not_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "owned",))  # type: ignore[return-value]

    torch.save({"classifier.weight": Evil()}, tmp_path / "teacher.pt")
    refuse(capsys, "teach", tmp_path, f"teacher.weights={tmp_path / 'teacher.pt'}")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(1797, dtype=np.int64), "9 of 10 classes have no training image"),
        (np.full(1797, 12), "1797 labels are outside 0..9"),
        (np.zeros(0, dtype=np.int64), "no images"),
    ],
)
def test_data_that_cannot_be_learned_from(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    labels: np.ndarray,
    message: str,
) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    digits.target, digits.images = labels, digits.images[: len(labels)]
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: digits)
    error = refuse(capsys, "teach", tmp_path)
    assert message in error
    assert "digits" in error


def test_errors_are_user_errors_not_assertions() -> None:
    assert not issubclass(UserError, ValueError), "a command must not swallow defects with mistakes"
