"""Trials that hang: a student that never returns, a worker that was stopped."""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from drill_searches import SMALL, Report, attempts, fates, own_ray
from drilling import Drill
from optuna.trial import TrialState
from running import here, overrides
from troubled_student import SLOW_SECONDS

from krscale.errors import UserError
from krscale.search.session import run_session

STALL = 20
"""Seconds; on a shared machine, a sound trial was seen to make no progress for 8."""
STALLS = f"search.stall_seconds={STALL}"
SECONDS_OF_AN_EPOCH = 17 * SLOW_SECONDS
pytestmark = [pytest.mark.drill, pytest.mark.cluster, pytest.mark.timeout(600)]


def stopping(folder: Path, after: float) -> tuple[threading.Thread, list[int]]:
    """Stop the first slow worker `after` seconds from its first step; return its id as well."""
    stopped: list[int] = []

    def stop_worker() -> None:
        while not (pids := list(folder.glob("slow-*"))):
            time.sleep(0.1)
        time.sleep(after)
        stopped.append(int(pids[0].name.removeprefix("slow-")))
        os.kill(stopped[0], signal.SIGSTOP)

    thread = threading.Thread(target=stop_worker, daemon=True)
    thread.start()
    return thread, stopped


def test_a_student_that_never_returns_costs_one_trial(drill: Drill, tmp_path: Path) -> None:
    report = Report(drill, f"a student whose step never returns; search.stall_seconds = {STALL}")
    experiment = fates(tmp_path, "stays", "calm", settings=(STALLS,))
    with own_ray(1):
        run_session(experiment, quiet=True)
    (stays,) = attempts(experiment.run_path, "stays")
    error = stays.user_attrs.get("error", "")
    report.must_hold("it is FAIL, and not run again", stays.state is TrialState.FAIL)
    report.must_hold(f"in one sentence: {error!r}", error.startswith("it made no progress for"))
    (calm,) = attempts(experiment.run_path, "calm")
    report.must_hold("the other trial is complete", calm.state is TrialState.COMPLETE)
    report.must_hold("the search has its curve", (experiment.run_path / "curve.json").exists())
    report.done()


def test_a_student_whose_construction_never_returns_costs_one_trial(
    drill: Drill, tmp_path: Path
) -> None:
    report = Report(
        drill, f"a student whose constructor never returns on a worker; stall_seconds = {STALL}"
    )
    experiment = fates(tmp_path, "is never built", "calm", settings=(STALLS,))
    with own_ray(1):
        run_session(experiment, quiet=True)
    (unbuilt,) = attempts(experiment.run_path, "is never built")
    report.must_hold("it is FAIL, and not run again", unbuilt.state is TrialState.FAIL)
    (calm,) = attempts(experiment.run_path, "calm")
    report.must_hold("the other trial is complete", calm.state is TrialState.COMPLETE)
    report.done()


def test_the_wall_limit_ends_a_search_whose_trial_hangs(
    drill: Drill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("krscale.stalls.LEAST_SECONDS_AT_THE_END", 15.0)
    monkeypatch.setattr("krscale.stalls.TIMES_THE_LONGEST", 1.0)
    report = Report(drill, "a step that never returns; stall_seconds = off, max_wall_seconds = 40")
    settings = ("search.stall_seconds=off", "search.max_wall_seconds=40")
    experiment = fates(tmp_path, "stays", "calm", settings=settings)
    # On a busy machine the calm trial may not have begun after 40 seconds; then every trial fails.
    with own_ray(2), suppress(UserError):
        run_session(experiment, quiet=True)
    (stays,) = attempts(experiment.run_path, "stays")
    report.must_hold("the search ended, its trial FAIL", stays.state is TrialState.FAIL)
    report.done()


def test_a_stopped_worker_costs_one_trial_and_is_replaced(drill: Drill, tmp_path: Path) -> None:
    report = Report(drill, f"SIGSTOP to a worker in mid-epoch; search.stall_seconds = {STALL}")
    experiment = fates(tmp_path, "slow", "calm", settings=(STALLS,))
    thread, stopped = stopping(tmp_path, after=1.0)
    with own_ray(1):
        run_session(experiment, quiet=True)
        thread.join()
        report.must_hold("the worker is gone", not psutil.pid_exists(stopped[0]))
    (slow,) = attempts(experiment.run_path, "slow")
    report.must_hold("its trial is FAIL", slow.state is TrialState.FAIL)
    (calm,) = attempts(experiment.run_path, "calm")
    report.must_hold("the other trial is complete", calm.state is TrialState.COMPLETE)
    report.done()


def test_a_stopped_rank_of_distill_is_replaced(drill: Drill, tmp_path: Path) -> None:
    report = Report(drill, f"SIGSTOP to one rank of two of krscale distill; {STALLS}")
    thread, stopped = stopping(tmp_path, after=1.5 * SECONDS_OF_AN_EPOCH)
    settings = (
        *SMALL, STALLS, "train.num_epochs=3", f"storage_path={tmp_path}", "name=stopped",
        "train.num_workers=2", "cluster.address=local", "cluster.num_cpus=3",
        "student.model=troubled_student:Troubled",
        f"student.options={{fate = 'second slow', folder = '{tmp_path}'}}",
    )  # fmt: skip
    done = here("distill", overrides(*settings))
    thread.join(0)
    report.must_hold("the command ends with 0", done.returncode == 0)
    said = "The training: it made no progress for"
    report.must_hold(f"it is said once: {said!r}", done.stderr.count(said) == 1)
    report.must_hold("the worker is gone", stopped and not psutil.pid_exists(stopped[0]))
    report.must_hold("its place was taken by another", len(list(tmp_path.glob("slow-*"))) == 2)
    report.must_hold("the student is there", list(tmp_path.glob("stopped-*/student.json")))
    report.done()
