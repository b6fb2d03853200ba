"""A clock that jumps between the starts of a search, and files from the future or long ago."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drilling import Drill
from finished_search import SETTINGS, train_here, without_ray
from parts.recorded_trials import find_faults, recorded_trials
from running import in_process, overrides

from krscale.search.studies.ladder import Ladder
from krscale.setup.prepare import Prepared

pytestmark = [
    pytest.mark.drill,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # MLflow's client
]
DAY = 86_400.0
STARTS: tuple[tuple[float, int | None, int], ...] = (
    (0.0, 3, 130),
    (-400 * DAY, 3, 130),
    (3650 * DAY, 3, 130),
    (-1.0, None, 0),
    (-DAY, None, 0),
)
"""Of each start: offset of its clock, epochs after which it is interrupted, exit code."""


def cut_short(num_epochs: int | None) -> Callable[..., None]:
    """Return a training of a search that is interrupted when it reports one more epoch."""

    def train(ladder: Ladder, prepared: Prepared, *rest: Any) -> None:
        report, left = ladder.report, [num_epochs]

        def count(*arguments: Any) -> bool:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] = None if left[0] is None else left[0] - 1
            return report(*arguments)

        ladder.report = count  # type: ignore[method-assign]
        train_here(ladder, prepared)

    return train


def start(storage: Path, num_epochs: int | None) -> int:
    settings = overrides(*SETTINGS, f"storage_path={storage}", "tracking.experiment=small")
    with without_ray(cut_short(num_epochs)):
        return in_process("tune")([*settings, "--quiet"])


def cached(storage: Path) -> dict[Path, tuple[int, int]]:
    """Inode and size of each file of the cache; a file that is written again has another inode."""
    files = [path for path in (storage / "cache").rglob("*") if path.is_file()]
    return {f: (f.stat().st_ino, f.stat().st_size) for f in files if f.suffix != ".lock"}


def test_a_clock_that_jumps_rebuilds_and_loses_nothing(
    drill: Drill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    drill.must_hold("data, teacher and store are made once")
    drill.must_hold("every trial is there once, what had ended is unchanged, in MLflow as well")
    real, real_ns = time.time, time.time_ns
    before, made = {}, {}
    for offset, num_epochs, expected in STARTS:
        monkeypatch.setattr(time, "time", lambda offset=offset: real() + offset)
        monkeypatch.setattr(time, "time_ns", lambda offset=offset: real_ns() + int(offset * 1e9))
        assert start(tmp_path, num_epochs) == expected
        drill.injected(f"a start with its clock {offset / DAY:+,.0f} days off")
        now = recorded_trials(tmp_path / "small")
        assert {key: now[key] for key in before} == before
        before = {key: trial for key, trial in now.items() if trial.ended}
        made = made or cached(tmp_path)
        assert cached(tmp_path) == made
        times = real() + 10 * 365 * DAY * (1 if offset < 0 else -1)
        for number, path in enumerate(sorted(tmp_path.rglob("*"))):
            os.utime(path, (times + number, times - number))
            drill.injected(f"a file from ten years {'ahead' if offset < 0 else 'ago'}")
    monkeypatch.undo()
    drill.held(f"{len(made)} files of the cache stayed as they were in {len(STARTS)} starts")
    assert find_faults(tmp_path / "small", {False: 2, True: 1}, 2) == []
    assert in_process("sync")([str(tmp_path / "small")]) == 0
    assert in_process("verify")([str(tmp_path / "small")]) == 0
    drill.held(f"{len(before)} trials, as planned, and krscale sync and verify find nothing amiss")
