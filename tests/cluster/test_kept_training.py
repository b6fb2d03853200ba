"""Where a training of several workers continues: damaged checkpoints, a lost record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from krscale.cluster.kept_training import SNAPSHOT, KeptTraining, find_kept
from krscale.errors import UserError
from krscale.training.checkpoint import save_checkpoint

LATEST = Path("checkpoint_2/state")


def kept_training(folder: Path) -> Path:
    """Write the files of two epochs that krscale reads, as Ray Train leaves them."""
    names = ("checkpoint_1", "checkpoint_2")
    for name in names:
        note = json.dumps({"epoch": float(name[-1])})
        save_checkpoint(folder / name / "state", {"weights": torch.zeros(3)}, note)
    results = [{"checkpoint_dir_name": name, "metrics": {}} for name in names]
    content = {"checkpoint_results": results, "latest_checkpoint_result": results[-1]}
    (folder / SNAPSHOT).write_text(json.dumps(content))
    return folder


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def nothing_whole(folder: Path) -> None:
    (folder / SNAPSHOT).write_text("{")
    for path in folder.glob("checkpoint_?"):
        flip(path / "state/state.pt")


def find(folder: Path, notes: list[str] | None = None) -> KeptTraining:
    return find_kept(folder, "student", (notes if notes is not None else []).append)


def test_a_training_that_can_go_on_is_not_refused(tmp_path: Path) -> None:
    assert find(tmp_path / "never began") == KeptTraining()
    known_to_ray_train = KeptTraining(metrics={"epoch": 2.0})
    assert find(kept_training(tmp_path / "train")) == known_to_ray_train
    flip(tmp_path / "train/checkpoint_1/state/state.pt")
    assert find(tmp_path / "train") == known_to_ray_train, "nothing goes on from it"


def test_checkpoints_of_an_older_krscale_have_no_metrics(tmp_path: Path) -> None:
    folder = kept_training(tmp_path / "train")
    save_checkpoint(folder / "checkpoint_2/state", {"weights": torch.zeros(3)})
    assert find(folder) == KeptTraining()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: flip(folder / LATEST / "state.pt"), "state.pt: broken: its SHA"),
        (
            lambda folder: flip(folder / LATEST / "manifest.json"),
            "manifest.json: damaged",
        ),
        (lambda folder: (folder / LATEST / "state.pt").unlink(), "state.pt: missing"),
        (lambda folder: (folder / "checkpoint_2").rename(folder / "gone"), "checkpoint is missing"),
        (nothing_whole, f"{SNAPSHOT}: damaged"),
    ],
    ids=["state", "manifest", "no state", "no folder", "nothing whole"],
)
def test_a_checkpoint_that_rots_is_named_before_any_worker_starts(
    tmp_path: Path, harm: Callable[[Path], object], said: str
) -> None:
    folder = kept_training(tmp_path / "train")
    harm(folder)
    with pytest.raises(UserError, match=said) as refused:
        find(folder)
    assert str(refused.value).endswith(
        f"Delete the folder {folder}: the same command then trains the student from the start."
    )


RECORDS = [
    b"", b"{", b"[]", b"\xff", b'{"checkpoint_results": []', b'{"checkpoint_results": [1]}',
    b'{"checkpoint_results": [{"checkpoint_dir_name": 3}], "latest_checkpoint_result": 0}',
]  # fmt: skip
"""Ray Train's record, as a failing machine may leave it, or other content."""


@pytest.mark.parametrize("record", RECORDS)
def test_the_newest_whole_checkpoint_is_gone_on_from_where_the_record_is_lost(
    record: bytes, tmp_path: Path
) -> None:
    folder, notes = kept_training(tmp_path / "train"), []
    first, second = folder / "checkpoint_1", folder / "checkpoint_2"
    (folder / SNAPSHOT).write_bytes(record)
    found = find(folder, notes)
    assert (found.checkpoint, found.metrics) == (second, {"epoch": 2.0})
    (note,) = notes
    assert str(folder / f"{SNAPSHOT}.damaged") in note
    assert not (folder / SNAPSHOT).exists(), "Ray Train would fail with it"
    assert find(folder) == found, "before the next report, too"
    flip(second / "state/state.pt")
    found = find(folder)
    assert (found.checkpoint, found.metrics) == (first, {"epoch": 1.0})
    found.remove_unrecorded()
    assert list(folder.glob("checkpoint_?")) == []


def test_a_last_epoch_is_trained_again_where_the_record_is_lost(tmp_path: Path) -> None:
    """Otherwise no epoch is left to report, and the accuracy stays unknown."""
    folder = kept_training(tmp_path / "train")
    (folder / "checkpoint_2/student.safetensors").touch()
    (folder / SNAPSHOT).unlink()
    assert find(folder).checkpoint == folder / "checkpoint_1"


def test_on_a_uri_nothing_is_found_that_ray_train_has_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object is whole or absent, and the local folder is a copy."""
    folder = kept_training(tmp_path / "train")
    monkeypatch.setattr("krscale.cluster.kept_training.place_of", lambda _: ("s3://b", "train"))
    (folder / SNAPSHOT).write_bytes(b"{")
    with pytest.raises(UserError, match="damaged"):
        find(folder)
    (folder / SNAPSHOT).unlink()
    assert find(folder) == KeptTraining()


def test_what_ray_train_has_no_record_of_is_removed_in_the_end(tmp_path: Path) -> None:
    folder = kept_training(tmp_path / "train")
    for name in ("checkpoint_0", "checkpoint_3"):
        (folder / name / "state").mkdir(parents=True)
    found = find(folder)
    assert found.checkpoint is None
    (folder / "checkpoint_4").mkdir()  # this training's own; Ray Train may be removing it
    (folder / "checkpoint_3/state").rmdir()
    (folder / "checkpoint_3").rmdir()
    found.remove_unrecorded()
    left = {path.name for path in folder.iterdir()}
    assert left == {SNAPSHOT, "checkpoint_1", "checkpoint_2", "checkpoint_4"}
