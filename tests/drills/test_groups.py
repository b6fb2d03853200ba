"""Trials of several workers: stopped early, or with one worker killed, stopped or out of memory."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from drill_searches import SMALL, Report, attempts, fates, own_ray, trials_of
from drilling import Drill
from optuna.trial import TrialState
from rounding import same_but_for_rounding
from running import ROOT, environment, overrides

from krscale.config import load
from krscale.search.on_ray.slots import Slots
from krscale.search.session import run_session
from krscale.search.studies.ladder import Ladder

pytestmark = [pytest.mark.drill, pytest.mark.cluster, pytest.mark.timeout(1200)]

TWO = ("train.num_workers=2", "search.gpus_per_trial=0", "search.stall_seconds=60")
FEW_STEPS = ("train.global_batch_size=512", "train.num_epochs=4", "train.warmup_epochs=0.5")
STOPS = 50


def test_fifty_early_stops_in_a_row(drill: Drill, tmp_path: Path) -> None:
    report = Report(drill, "a search of trials of two workers, of which ASHA stops most")
    settings = (
        "search.early_stopping=asha",
        "search.grace_epochs=1",
        "search.sampler=random",
        "search.trials_per_size=100",
    )
    where = f"storage_path={tmp_path}"
    experiment = load(None, [*SMALL, *TWO, *FEW_STEPS, *settings, where])
    with own_ray(2):
        run_session(experiment, quiet=True)
    (trials,) = [ts for name, ts in trials_of(experiment.run_path).items() if "final" not in name]
    pruned = [trial for trial in trials if trial.state is TrialState.PRUNED]
    number = f"{STOPS} trials or more are stopped: {len(pruned)}"
    report.must_hold(number, len(pruned) >= STOPS)
    counted = {TrialState.PRUNED, TrialState.COMPLETE}
    exact = len(trials) == 100 and {trial.state for trial in trials} <= counted
    report.must_hold("100 trials, none failed, none run again", exact)
    report.must_hold("the search has its curve", (experiment.run_path / "curve.json").exists())
    report.done()


def test_every_method_gives_the_numbers_of_one_worker(
    drill: Drill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`crd` compares the samples of a worker's share, so its loss depends on the workers."""
    losses: dict[tuple[int, str], list[float]] = {}
    number_of_workers = 1
    of_the_ladder = Ladder.report

    def report_loss(ladder: Any, assignment: Any, metrics: Any) -> bool:
        key = (number_of_workers, assignment.name)
        losses.setdefault(key, []).append(metrics["train/loss"])
        return of_the_ladder(ladder, assignment, metrics)

    monkeypatch.setattr(Ladder, "report", report_loss)
    report = Report(drill, "plain, kd, kr and crd with one, two and three workers")
    settings = (
        "search.methods=['plain', 'kd', 'kr', 'crd']",
        "search.sampler=random",
        "search.trials_per_size=1",
        "search.early_stopping=none",
        "train.num_epochs=2",
        "train.global_batch_size=100",  # the last batch has another size
    )
    with own_ray(3):
        for number_of_workers in (1, 2, 3):
            where = f"storage_path={tmp_path}", f"name=of-{number_of_workers}"
            workers = f"train.num_workers={number_of_workers}"
            experiment = load(None, [*SMALL, *TWO, *settings, *where, workers])
            run_session(experiment, quiet=True)
    names = {name for _, name in losses}
    report.must_hold("a trial and a final of every method", len(names) == 8)
    for name in sorted(names):
        if "crd" in name:
            finite = all(value < 100.0 for n in (1, 2, 3) for value in losses[n, name])
            report.must_hold(f"{name} trains on shares", finite)
            continue
        for number in (2, 3):
            same = same_but_for_rounding(losses[number, name], losses[1, name])
            report.must_hold(f"{name}: the losses of one worker on {number}", same)
    report.done()


def test_groups_of_other_sizes_give_the_numbers_of_one_worker(
    drill: Drill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: dict[tuple[str, str], list[float]] = {}
    sizes: set[int] = set()
    run_name = "one"
    of_the_ladder, of_the_slots = Ladder.report, Slots.next_size

    def report_loss(ladder: Any, assignment: Any, metrics: Any) -> bool:
        losses.setdefault((run_name, assignment.name), []).append(metrics["train/loss"])
        return of_the_ladder(ladder, assignment, metrics)

    def next_size(slots: Any, begun: Any, waiting: Any) -> int:
        sizes.update(begun if run_name == "varying" else ())
        return of_the_slots(slots, begun, waiting)

    monkeypatch.setattr(Ladder, "report", report_loss)
    monkeypatch.setattr(Slots, "next_size", next_size)
    report = Report(drill, "a search of trials of one to three workers on four cores")
    settings = (
        "search.methods=['plain', 'kd', 'kr']",
        "search.sampler=random",
        "search.trials_per_size=1",
        "search.early_stopping=none",
        "train.num_epochs=2",
        "train.global_batch_size=100",  # the last batch has another size
        "search.gpus_per_trial=0",
    )
    with own_ray(4):
        for run_name, most in (("one", 1), ("varying", 3)):
            where = f"storage_path={tmp_path}", f"name={run_name}", f"train.max_workers={most}"
            run_session(load(None, [*SMALL, *settings, *where]), quiet=True)
    report.must_hold(f"groups of three and of one: {sizes}", {1, 3} <= sizes <= {1, 2, 3})
    tried = sorted(name for run, name in losses if run == "one")
    report.must_hold("a trial and a final of every method", len(tried) == 6)
    for name in tried:
        same = same_but_for_rounding(losses["varying", name], losses["one", name])
        report.must_hold(f"{name}: the losses of one worker", same)
    report.done()


def test_a_killed_worker_of_a_group_costs_no_trial(drill: Drill, tmp_path: Path) -> None:
    report = Report(drill, "SIGKILL to the second worker of a trial")
    experiment = fates(tmp_path, "second killed once", "calm", settings=TWO)
    with own_ray(4):
        run_session(experiment, quiet=True)
    first, *others = attempts(experiment.run_path, "second killed once")
    lost = first.user_attrs.get("interrupted") == "its worker was lost"
    report.must_hold("the trial was cut short, and does not count", lost)
    kept = first.intermediate_values
    goes_on = len(others) == 1 and others[0].user_attrs.get("continues") == first.number
    report.must_hold("it goes on from its checkpoint, once", goes_on and kept)
    epochs = dict(others[0].intermediate_values) if others else {}
    exact = list(epochs) == list(range(1, 7)) and kept.items() <= epochs.items()
    report.must_hold("no epoch is missing or counted twice", exact)
    (calm,) = attempts(experiment.run_path, "calm")
    report.must_hold("the other trial is complete", calm.state is TrialState.COMPLETE)
    report.must_hold("the search has its curve", (experiment.run_path / "curve.json").exists())
    report.done()


def test_a_worker_of_a_group_that_crashes_always(drill: Drill, tmp_path: Path) -> None:
    report = Report(drill, "the second worker of a trial ends by SIGSEGV, whenever it is run")
    settings = (*TWO, "search.max_retries=1")
    experiment = fates(tmp_path, "second crashes", "calm", settings=settings)
    with own_ray(2):
        run_session(experiment, quiet=True)
    *_, last = found = attempts(experiment.run_path, "second crashes")
    report.must_hold("it is run again search.max_retries = 1 times", len(found) == 2)
    error = last.user_attrs.get("error", "")
    report.must_hold("it is FAIL", last.state is TrialState.FAIL)
    report.must_hold(f"in one sentence: {error!r}", error.startswith("its worker was lost 2 times"))
    report.done()


def test_one_worker_of_a_group_without_memory(drill: Drill, tmp_path: Path) -> None:
    report = Report(drill, "an error of memory on the second worker of a trial alone")
    experiment = fates(tmp_path, "second out of memory", "calm", settings=TWO)
    with own_ray(2):
        run_session(experiment, quiet=True)
    *_, last = found = attempts(experiment.run_path, "second out of memory")
    report.must_hold("it is run once more", len(found) == 2)
    report.must_hold("with no other beside it", last.user_attrs.get("alone"))
    error = last.user_attrs.get("error", "")
    report.must_hold(f"then FAIL, and it names memory: {error!r}", "out of memory" in error)
    report.done()


def test_a_stopped_worker_of_a_group_is_ended(drill: Drill, tmp_path: Path) -> None:
    report = Report(drill, "SIGSTOP to the second worker of a trial; search.stall_seconds = 20")
    settings = (*TWO, "search.stall_seconds=20")
    experiment = fates(tmp_path, "second slow", "calm", settings=settings)
    stopped: list[int] = []

    def stop_worker() -> None:
        while not (found := list(tmp_path.glob("slow-*"))):
            time.sleep(0.1)
        time.sleep(1.0)
        stopped.append(int(found[0].name.removeprefix("slow-")))
        os.kill(stopped[0], signal.SIGSTOP)

    thread = threading.Thread(target=stop_worker)
    thread.start()
    with own_ray(2):
        run_session(experiment, quiet=True)
        thread.join()
        report.must_hold("the stopped worker is gone", not psutil.pid_exists(stopped[0]))
    (slow,) = attempts(experiment.run_path, "second slow")
    error = slow.user_attrs.get("error", "")
    report.must_hold(f"its trial is FAIL: {error!r}", slow.state is TrialState.FAIL)
    (calm,) = attempts(experiment.run_path, "calm")
    report.must_hold("the other trial is complete", calm.state is TrialState.COMPLETE)
    report.done()


def test_a_killed_driver_goes_on(drill: Drill, tmp_path: Path) -> None:
    report = Report(drill, "SIGKILL to the driver of a search of trials of two workers")
    settings = (*SMALL, *TWO, "train.num_epochs=30", "search.sampler=random")
    private = "cluster.address=local", "cluster.num_cpus=2"
    arguments = overrides(*settings, *private, f"storage_path={tmp_path}", "name=killed")
    command = [sys.executable, "-m", "krscale.tune", "--quiet", *arguments]

    def is_training() -> bool:
        found = trials_of(tmp_path / "killed") if (tmp_path / "killed/journal.log").exists() else {}
        return any(t.intermediate_values for ts in found.values() for t in ts)

    first = subprocess.Popen(command, cwd=ROOT, env=environment())
    while first.poll() is None and not is_training():
        time.sleep(0.2)
    workers = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait()
    again = subprocess.run(command, cwd=ROOT, env=environment(), check=False)
    report.must_hold("the same command ends the search", again.returncode == 0)
    _, alive = psutil.wait_procs(workers, timeout=30)
    report.must_hold("no process of the first is left", not alive)
    found = trials_of(tmp_path / "killed")
    complete = {n: sum(t.state is TrialState.COMPLETE for t in ts) for n, ts in found.items()}
    exact = sorted(complete.values()) == [1, 3]
    report.must_hold(f"three trials and a final, each once: {complete}", exact)
    cut = [t for ts in found.values() for t in ts if t.user_attrs.get("interrupted")]
    report.must_hold("one trial was cut short", len(cut) == 1)
    report.done()
