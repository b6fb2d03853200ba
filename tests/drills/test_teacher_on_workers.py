"""A teacher that is trained by two workers of Ray Train; a rank and then the driver are killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drilling import Drill
from running import ROOT, environment, here, one_ray, overrides
from safetensors.torch import load_file

from krscale.cluster import teacher
from krscale.cluster.kept_training import SNAPSHOT

pytestmark = [pytest.mark.drill, pytest.mark.cluster, pytest.mark.timeout(1800)]

NUM_EPOCHS, KILLED_AFTER = 10, 3
SETTINGS = (
    "cluster.address=local",
    "cluster.num_cpus=3",
    "teacher.model=smooth_student:Mortal",
    "teacher.width=4",
    f"teacher.num_epochs={NUM_EPOCHS}",
    "teacher.learning_rate=0.01",
    "teacher.allow_poor=true",
    "train.global_batch_size=77",
    "views.num_views=1",
)


def test_a_killed_rank_and_a_killed_driver_leave_the_teacher_of_one_worker(
    drill: Drill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    drill.injected("SIGKILL to one of two ranks that train a teacher")
    drill.injected(f"SIGKILL to the driver after {KILLED_AFTER} epochs of its teacher")
    drill.must_hold("the same command goes on from the last epoch that was kept")
    drill.must_hold("the teacher is that of one worker, and nothing else is left")
    settings = (*SETTINGS, f"teacher.options={{folder='{tmp_path}'}}")
    many = overrides(*settings, f"storage_path={tmp_path / 'many'}", "teacher.num_workers=2")
    _kill_driver(many, tmp_path / "many")
    assert (tmp_path / "died").exists()

    epochs: list[int] = []
    monkeypatch.setattr(teacher, "fit_on_workers", _heard(teacher.fit_on_workers, epochs))
    with one_ray(num_cpus=3):
        done = here("teach", ["--quiet", *many])
    assert done.returncode == 0, done.stderr
    assert epochs == list(range(epochs[0], NUM_EPOCHS + 1))
    assert epochs[0] > KILLED_AFTER
    drill.held(f"went on with epoch {epochs[0]} of {NUM_EPOCHS}")

    alone = overrides(*settings, f"storage_path={tmp_path / 'one'}")
    done = here("teach", ["--quiet", *alone])
    assert done.returncode == 0, done.stderr
    one, two = (tmp_path / name / "cache/teachers" for name in ("one", "many"))
    assert sorted(p.relative_to(one) for p in one.rglob("*")) == sorted(
        p.relative_to(two) for p in two.rglob("*")
    )
    (weights,) = one.glob("*/teacher.safetensors")
    expected, found = load_file(weights), load_file(two / weights.relative_to(one))
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    furthest = max((found[name] - tensor).abs().max().item() for name, tensor in expected.items())
    drill.held(f"same files; weights are {furthest:.1e} apart at most")


def _kill_driver(arguments: list[str], storage: Path) -> None:
    """Run `krscale teach` until the storage has the checkpoint of an epoch, and kill it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "krscale.teach", *arguments],
        env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while process.poll() is None and _epoch_kept(storage) < KILLED_AFTER:
            time.sleep(0.1)
        assert process.poll() is None, process.stderr and process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def _epoch_kept(storage: Path) -> int:
    for file in storage.glob(f"cache/teachers/.*.unfinished/train/{SNAPSHOT}"):
        try:
            latest = json.loads(file.read_bytes())["latest_checkpoint_result"]
        except ValueError:  # being written
            return 0
        return int(latest["metrics"]["epoch"]) if latest else 0
    return 0


def _heard(fit: Callable[..., Any], epochs: list[int]) -> Callable[..., Any]:
    def fit_and_note(*arguments: Any) -> Any:
        *others, on_epoch, note = arguments

        def hear(metrics: dict[str, float]) -> None:
            epochs.append(int(metrics["epoch"]))
            on_epoch(metrics)

        return fit(*others, hear, note)

    return fit_and_note
