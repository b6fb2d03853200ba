"""Workers that die: killed by Ray's memory monitor, by a signal, again and again."""

from pathlib import Path

import psutil
import pytest
from drill_searches import Report, attempts, fates, own_ray
from drilling import Drill
from optuna.trial import TrialState

from krscale.search.session import run_session

pytestmark = [pytest.mark.drill, pytest.mark.cluster, pytest.mark.timeout(600)]

ROOM = 3 * 2**30
"""Bytes that trials may take before Ray's memory monitor kills one."""


def test_a_student_that_grows_costs_one_trial(drill: Drill, tmp_path: Path) -> None:
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + ROOM) / memory.total
    if threshold > 0.97:
        pytest.skip("this machine has too little memory to spare")
    limits = {
        "RAY_memory_usage_threshold": f"{threshold:.3f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }
    report = Report(drill, "a student that takes 100 MB more at every step, for ever")
    experiment = fates(tmp_path, "grows", "calm")
    with own_ray(2, **limits):
        run_session(experiment, quiet=True)
    _, *others = attempts(experiment.run_path, "grows")
    report.must_hold("it is run once more, and no third time", len(others) == 1)
    report.must_hold("the second time alone", others and others[0].user_attrs.get("alone"))
    error = others[-1].user_attrs.get("error", "") if others else ""
    report.must_hold("it is FAIL", others and others[-1].state is TrialState.FAIL)
    report.must_hold(f"in one sentence that names memory: {error!r}", "memory" in error)
    (calm,) = [t for t in attempts(experiment.run_path, "calm") if t.state is TrialState.COMPLETE]
    report.must_hold("the other trial is complete", calm.state is TrialState.COMPLETE)
    report.must_hold("the search has its curve", (experiment.run_path / "curve.json").exists())
    report.done()


def test_a_student_that_crashes_costs_one_trial(drill: Drill, tmp_path: Path) -> None:
    report = Report(drill, "a student whose every step ends its process by SIGSEGV")
    experiment = fates(tmp_path, "crashes", "calm", settings=("search.max_retries=1",))
    with own_ray(2):
        run_session(experiment, quiet=True)
    *_, last = found = attempts(experiment.run_path, "crashes")
    report.must_hold("it is run again search.max_retries = 1 times", len(found) == 2)
    report.must_hold("it is FAIL", last.state is TrialState.FAIL)
    error = last.user_attrs.get("error", "")
    report.must_hold(f"in one sentence: {error!r}", error.startswith("its worker was lost 2 times"))
    (calm,) = [t for t in attempts(experiment.run_path, "calm") if t.state is TrialState.COMPLETE]
    report.must_hold("the other trial is complete", calm.state is TrialState.COMPLETE)
    report.done()
