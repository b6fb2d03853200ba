"""One round of the drill: a small search, killed at random moments and started again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from parts.measuring import ROOT
from parts.recorded_trials import TrialRecord, recorded_trials

SETTINGS = (
    "cluster.address=local",
    "cluster.num_cpus=2",
    "teacher.width=8",
    "teacher.num_epochs=3",
    "views.num_views=2",
    "ladder.capacities=['1/16']",
    "train.num_epochs=3",
    "search.methods=['plain', 'kr']",
    "search.trials_per_size=4",
    "search.num_final_seeds=2",
    "search.grace_epochs=1",
)
NUM_TRIALS, NUM_FINALS, NUM_STUDIES = 4, 2, 2
"""Of the settings above: two methods at one capacity."""
NUM_ALL = NUM_STUDIES * (NUM_TRIALS + NUM_FINALS)
START_SECONDS = 1800
"""Time after which a start counts as hung; long enough for shared machines."""


@dataclass
class Round:
    """What happened in a round.

    Attributes:
        kills: For each kill, the seconds since its start and the number of trials that had ended.
        changed: Trials that had ended before a kill and were different afterwards.
    """

    name: str
    kills: list[tuple[float, int]] = field(default_factory=list)
    finished: dict[str, TrialRecord] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    exit_code: int = -1
    seconds: float = 0.0


@dataclass(frozen=True)
class Moment:
    """When to kill: `seconds` after `num_ended` trials have ended, or after the start if 0."""

    num_ended: int
    seconds: float

    @classmethod
    def draw(cls, draws: random.Random, found: Round, early: bool) -> Moment:
        """Draw a moment after the kills so far; one in four comes before the first trial.

        With `early` the first two kills do so: while data, teacher and store are made.
        """
        if draws.random() < 0.25 or (early and len(found.kills) < 2):
            return cls(0, draws.uniform(4.0, 20.0))
        least = found.kills[-1][1] + 1 if found.kills else 1
        return cls(draws.randint(min(least, NUM_ALL), NUM_ALL), draws.uniform(0.0, 2.0))

    def wait(self, process: subprocess.Popen[bytes], run: Path) -> None:
        """Wait until the moment has come, or the process has ended."""
        deadline = time.perf_counter() + START_SECONDS
        while self.num_ended and _num_ended(run) < self.num_ended:
            if process.poll() is not None or time.perf_counter() > deadline:
                return
            time.sleep(0.2)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=self.seconds)


def run_round(
    storage: Path, name: str, draws: random.Random, num_kills: int, early: bool = False
) -> Round:
    """Start a search, kill its driver up to `num_kills` times at random moments, let it end.

    Args:
        storage: Of all rounds; they share data, teacher and store.
        name: Of the run.
        draws: Source of the random moments.
        num_kills: Maximum number of kills; a start that ends by itself is the last.
        early: Whether the first two kills come soon, before trials begin.
    """
    found = Round(name)
    began = time.perf_counter()
    while found.exit_code != 0:
        last = len(found.kills) >= num_kills
        found.exit_code = _start(storage, found, None if last else Moment.draw(draws, found, early))
        now = recorded_trials(storage / name)
        found.changed += [key for key, before in found.finished.items() if now.get(key) != before]
        found.finished = {key: trial for key, trial in now.items() if trial.ended}
        if last and found.exit_code != 0:
            break
    found.seconds = time.perf_counter() - began
    return found


def forget_round(storage: Path, name: str) -> None:
    """Remove a run's folder."""
    shutil.rmtree(storage / name)


def _start(storage: Path, found: Round, moment: Moment | None) -> int:
    """Run the command once; kill it when the moment comes; return its exit code."""
    log = storage / f"{found.name}-{len(found.kills)}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            _command(storage, found.name), cwd=ROOT, env=_environment(),
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        started = time.perf_counter()
        if moment is not None:
            moment.wait(process, storage / found.name)
        try:
            return process.wait(timeout=START_SECONDS if moment is None else 0.0)
        except subprocess.TimeoutExpired:
            # Only the driver, as when a machine's owner kills it; Ray's own processes detect it.
            process.send_signal(signal.SIGKILL)
            process.wait()
            found.kills.append(
                (round(time.perf_counter() - started, 1), _num_ended(storage / found.name))
            )
            return -signal.SIGKILL


def _num_ended(run: Path) -> int:
    return sum(trial.ended for trial in recorded_trials(run).values())


def _command(storage: Path, name: str) -> Sequence[str]:
    settings = (*SETTINGS, f"storage_path={storage}", f"name={name}", f"tracking.experiment={name}")
    overrides = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, "-m", "krscale.tune", "--quiet", "--json", *overrides]


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
