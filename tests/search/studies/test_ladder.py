"""The ladder without Ray: equal budgets, early stopping within a study, restart, finals."""

import json
from collections.abc import Mapping
from pathlib import Path

import optuna
import pytest
import torch
from ladder_play import (
    METHODS,
    SIZES,
    Assignment,
    Next,
    experiment,
    ladder,
    next_of,
    play,
    play_all,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from krscale.search.studies.checkpoints import checkpoint_path
from krscale.search.studies.retries import Cause
from krscale.search.studies.trial_spec import FinalKey, StudyKey, TuningKey
from krscale.training.checkpoint import save_checkpoint


def test_every_study_gets_the_same_budget_and_its_winner_fresh_seeds(tmp_path: Path) -> None:
    found = ladder(tmp_path, experiment())
    played = play_all(found)
    for method in METHODS:
        for size in SIZES:
            tuned = [a for a in played if a.key == TuningKey(method, size.capacity)]
            finals = [a for a in played if a.key == FinalKey(method, size.capacity)]
            assert len(tuned) == 5
            assert {a.seed for a in tuned} == {0}
            assert len(finals) == 2
            assert len({a.seed for a in finals} | {0}) == 3
            best = max(
                (t for t in found.counted(tuned[0].key) if t.state is TrialState.COMPLETE),
                key=lambda t: t.value,
            )
            assert all(dict(a.values) == best.params for a in finals)


def test_first_trial_is_the_users_own_setting(tmp_path: Path) -> None:
    config = experiment(**{"train.learning_rate": 0.123})
    found = ladder(tmp_path, config)
    first: dict[StudyKey, Assignment] = {}
    for assignment in play_all(found):
        first.setdefault(assignment.key, assignment)
    assert {
        a.values["train.learning_rate"] for k, a in first.items() if not isinstance(k, FinalKey)
    } == {0.123}


def test_studies_progress_together_and_large_students_first(tmp_path: Path) -> None:
    found = ladder(tmp_path, experiment())
    upcoming = [found.next() for _ in range(4)]
    assert [a.key.capacity for a in upcoming if isinstance(a, Assignment)] == [
        "1/4", "1/4", "1/64", "1/64",
    ]  # fmt: skip
    assert len({a.key for a in upcoming if isinstance(a, Assignment)}) == 4


def test_a_bad_trial_is_pruned_by_its_own_study_only(tmp_path: Path) -> None:
    found = ladder(tmp_path, experiment(**{"search.methods": ["plain"]}))
    large = found.next()
    small = found.next()
    assert isinstance(large, Assignment)
    assert isinstance(small, Assignment)

    def report(assignment: Assignment, epoch: int, accuracy: float) -> bool:
        metrics = {"val/accuracy": accuracy, "val/loss": 0.0, "epoch": float(epoch)}
        return found.report(assignment, metrics)

    assert not report(large, 2, 0.9)
    assert not report(small, 2, 0.1), "a small student is not compared with a large one"
    second = found.next()
    assert isinstance(second, Assignment)
    assert second.key == large.key
    assert not report(second, 1, 0.0), "nothing is stopped before the grace epochs"
    assert report(second, 2, 0.5)


def test_one_trial_at_a_time_is_repeated_by_the_same_seed_alone(tmp_path: Path) -> None:
    def trials(name: str, seed: int) -> list[tuple[str, dict[str, object]]]:
        config = experiment(**{"search.seed": seed, "search.transfer": True})
        found = ladder(tmp_path / name, config)
        return [(a.name, dict(a.values)) for a in play_all(found)]

    first = trials("first", seed=1)
    assert trials("again", seed=1) == first
    assert trials("other", seed=2) != first


def test_waits_while_the_last_trials_run_then_plans_finals(tmp_path: Path) -> None:
    found = ladder(tmp_path, experiment(**{"search.methods": ["plain"]}))
    running = [found.next() for _ in range(10)]
    assert found.next() is Next.WAIT
    for assignment in running:
        assert isinstance(assignment, Assignment)
        play(found, assignment)
    assert isinstance(found.next(), Assignment)


@pytest.mark.parametrize("num_before", [0, 1, 7, 20, 21, 27])
def test_restart_finishes_with_exactly_the_planned_trials(tmp_path: Path, num_before: int) -> None:
    """Kill with two trials running after any number of ended ones; nothing is lost or doubled."""
    config = experiment()
    before = ladder(tmp_path, config)
    ended: list[Assignment] = []
    for _ in range(num_before):
        upcoming = before.next()
        if isinstance(upcoming, Assignment):
            play(before, upcoming)
            ended.append(upcoming)
    orphans = [a for a in (before.next(), before.next()) if isinstance(a, Assignment)]
    del before  # a new process has only the journal

    after = ladder(tmp_path, config)
    played = play_all(after)
    planned = len(METHODS) * len(SIZES) * (5 + 2)
    assert len(ended) + len(played) == planned
    retried = [a for a in played if any(a.values == o.values and a.key == o.key for o in orphans)]
    assert len(retried) >= len(orphans)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    for key in after.studies:
        study = optuna.load_study(study_name=key.name, storage=storage)
        states = [trial.state for trial in study.trials]
        assert TrialState.RUNNING not in states
        assert len(after.counted(key)) == after.planned(key)
        interrupted = [t for t in study.trials if t.user_attrs.get("interrupted")]
        assert all(t.state is TrialState.FAIL for t in interrupted)
        retries = [t for t in study.trials if "retry_of" in t.user_attrs]
        assert len(retries) == len(interrupted)


class Recorder:
    """Keeps the last state of every trial, as a tracker does; can raise when a trial ends."""

    def __init__(self, *, dies: bool = False) -> None:
        self.states: dict[str, str] = {}
        self.dies = dies

    def on_start(self, assignment: Assignment) -> None:
        self.states[assignment.name] = "RUNNING"

    def on_epoch(self, assignment: Assignment, metrics: object) -> None:
        pass

    def on_end(
        self, assignment: Assignment, state: TrialState, metrics: object, error: str
    ) -> None:
        if self.dies:
            raise KeyboardInterrupt
        self.states[assignment.name] = state.name


def test_a_crash_while_a_trial_ends_leaves_journal_and_records_alike(tmp_path: Path) -> None:
    config = experiment()
    dying = Recorder(dies=True)
    before = ladder(tmp_path, config, (dying,))
    first = before.next()
    assert isinstance(first, Assignment)
    with pytest.raises(KeyboardInterrupt):
        play(before, first)
    assert dying.states == {first.name: "RUNNING"}

    living = Recorder()
    after = ladder(tmp_path, config, (living,))
    assert living.states == {first.name: "FAIL"}
    play_all(after)
    journal = {
        key.trial_name(trial.number): trial.state.name
        for key, study in after.optuna_studies.items()
        for trial in study.trials
    }
    assert living.states == journal


def test_a_lost_worker_is_retried_from_the_checkpoint_so_often_and_no_more(tmp_path: Path) -> None:
    one_study = {"search.methods": ["plain"], "search.max_retries": 2}
    found = ladder(tmp_path, experiment(**one_study))
    first = found.next()
    assert isinstance(first, Assignment)
    checkpoint_path(tmp_path, first.name).mkdir(parents=True)
    attempts = [first]
    while not found.counted(first.key):
        found.interrupt(attempts[-1], Cause.WORKER, {}, "the actor died")
        if not found.counted(first.key):
            attempts += [next_of(found, first.key)]
    assert [a.values for a in attempts] == [first.values] * 3
    assert [a.continues for a in attempts] == ["", first.name, first.name], (
        "the only one that left a checkpoint"
    )
    error = found.counted(first.key)[0].user_attrs["error"]
    assert error == "its worker was lost 3 times: the actor died"
    assert found.num_failed == 1
    assert not checkpoint_path(tmp_path, first.name).exists()
    play_all(found)
    assert len(found.counted(first.key)) == 5


def test_out_of_memory_is_retried_alone_and_once(tmp_path: Path) -> None:
    found = ladder(tmp_path, experiment(**{"search.methods": ["plain"]}))
    first = found.next()
    assert isinstance(first, Assignment)
    assert not first.alone
    found.interrupt(first, Cause.MEMORY, {}, "OutOfMemoryError")
    while isinstance(upcoming := found.next(), Assignment) and not upcoming.alone:
        beside = found.next()
        assert not isinstance(beside, Assignment) or not beside.alone, "only when none is running"
        for running in (upcoming, beside):
            if isinstance(running, Assignment):
                play(found, running)
    assert isinstance(upcoming, Assignment)
    assert (upcoming.key, upcoming.values) == (first.key, first.values)
    assert found.next() is Next.WAIT, "nothing starts beside it"
    found.interrupt(upcoming, Cause.MEMORY, {}, "OutOfMemoryError")
    assert TrialState.FAIL in [t.state for t in found.counted(first.key)]
    assert found.num_failed == 1
    play_all(found)
    assert len(found.counted(first.key)) == 5


def test_early_stopping_does_not_compare_a_retry_with_its_own_past(tmp_path: Path) -> None:
    """Trials report at the first milestone, one after another; a retry must change no verdict."""

    def verdicts(folder: Path, *, interrupt: bool) -> list[bool]:
        found = ladder(folder, experiment(**{"search.methods": ["plain"]}))
        key = TuningKey("plain", "1/4")
        stops = []
        for accuracy in (0.5, 0.9, 0.6, 0.7):
            upcoming = next_of(found, key)
            metrics = {"val/accuracy": accuracy, "val/loss": 0.0, "epoch": 2.0}
            stop = found.report(upcoming, metrics)
            if accuracy == 0.9 and interrupt:
                found.interrupt(upcoming, Cause.WORKER, metrics, "gone")
                upcoming = next_of(found, key)
                stop = found.report(upcoming, metrics)
            stops.append(stop)
            state = TrialState.PRUNED if stop else TrialState.COMPLETE
            found.finish(upcoming, state, metrics)
        return stops

    expected = verdicts(tmp_path / "whole", interrupt=False)
    assert expected == [False, False, True, False]
    assert verdicts(tmp_path / "cut", interrupt=True) == expected


def test_a_failed_trial_is_fail_counts_and_is_never_the_winner(tmp_path: Path) -> None:
    found = ladder(
        tmp_path, experiment(**{"search.methods": ["plain"], "search.num_final_seeds": 1})
    )
    first = found.next()
    assert isinstance(first, Assignment)
    found.finish(first, TrialState.FAIL, {}, "loss term 'ce' is not finite")
    play_all(found)
    trials = found.counted(first.key)
    assert len(trials) == 5
    assert trials[0].state is TrialState.FAIL
    assert trials[0].user_attrs["error"] == "loss term 'ce' is not finite"
    winner = found.winner("plain", first.key.capacity)
    assert winner is not None
    assert winner.number != first.number


def test_a_study_whose_trials_all_fail_ends_without_finals(tmp_path: Path) -> None:
    found = ladder(tmp_path, experiment(**{"search.methods": ["plain"]}))
    while isinstance(upcoming := found.next(), Assignment):
        found.finish(upcoming, TrialState.FAIL, {}, "out of luck")
    assert upcoming is Next.DONE
    assert found.winner("plain", "1/4") is None
    assert found.num_failed == 10


def test_ties_in_accuracy_are_broken_by_validation_loss(tmp_path: Path) -> None:
    found = ladder(tmp_path, experiment(**{"search.methods": ["plain"]}))
    losses = {}
    for loss in (0.5, 0.2, 0.9):
        upcoming = found.next()
        while isinstance(upcoming, Assignment) and upcoming.key.capacity != "1/4":
            play(found, upcoming)
            upcoming = found.next()
        assert isinstance(upcoming, Assignment)
        metrics = {"val/accuracy": 0.9, "val/loss": loss, "epoch": 4.0}
        found.finish(upcoming, TrialState.COMPLETE, metrics)
        losses[loss] = upcoming.number
    winner = found.winner("plain", "1/4")
    assert winner is not None
    assert winner.number == losses[0.2]


class Spooled:
    """Writes one line for each epoch that it has not written yet, as the tracker does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard = set(path.read_text().splitlines()) if path.exists() else set()
        self.reached: list[float] = []

    def on_start(self, assignment: Assignment) -> None: ...

    def on_epoch(self, assignment: Assignment, metrics: Mapping[str, float]) -> None:
        line = f"{assignment.name} {metrics['epoch']:g} {metrics['val/accuracy']:g}"
        if line not in self.heard:
            self.heard.add(line)
            with self.path.open("a") as file:
                file.write(f"{line}\n")

    def on_end(
        self, assignment: Assignment, state: TrialState, metrics: Mapping[str, float], reason: str
    ) -> None:
        self.reached.append(metrics["epoch"])


@pytest.mark.parametrize("lost", ["driver", "worker"])
@pytest.mark.parametrize("objectives", [["val/accuracy"], ["val/accuracy", "flops"]])
def test_an_epoch_that_was_kept_and_not_yet_reported_is_recorded_once(
    tmp_path: Path, lost: str, objectives: list[str]
) -> None:
    """Killed between the worker's checkpoint of an epoch and the driver's record of it."""
    settings = {
        "search.methods": ["plain"],
        "search.objectives": objectives,
        "search.early_stopping": "none",
        "train.num_epochs": 6,
    }
    spool = tmp_path / "spool"
    spooled = Spooled(spool)
    found = ladder(tmp_path, experiment(**settings), (spooled,))
    first = found.next()
    assert isinstance(first, Assignment)
    history = [
        {"epoch": float(epoch), "val/accuracy": epoch / 8, "diagnostic": float("nan")}
        for epoch in range(1, 5)
    ]
    for metrics in history[:2]:
        found.report(first, metrics)
    path = checkpoint_path(tmp_path, first.name)
    save_checkpoint(path, {"weights": torch.zeros(3)}, json.dumps(history))
    if lost == "worker":
        found.interrupt(first, Cause.WORKER, history[1], "killed")
    else:
        spooled = Spooled(spool)
        found = ladder(tmp_path, experiment(**settings), (spooled,))
    assert spooled.reached == [4.0], "of which MLflow says how far the attempt came"
    again = next_of(found, first.key)
    assert again.continues == first.name
    wanted = [f"{first.name} {epoch} {epoch / 8:g}" for epoch in range(1, 5)]
    assert spool.read_text().splitlines() == wanted
    trial = found.tuning[first.key].optuna.trials[first.number]
    in_journal = list(trial.intermediate_values)
    assert in_journal == ([1, 2, 3, 4] if len(objectives) == 1 else [])
