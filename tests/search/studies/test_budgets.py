"""What ends a search: time, epochs, a target; and that no worker is idle before that."""

import heapq
from datetime import datetime, timedelta
from pathlib import Path

import pytest

# `ladder_play` reports simulated trials to the ladder as the driver would.
from ladder_play import (
    SIZES,
    Assignment,
    Ladder,
    Next,
    experiment,
    ladder,
    next_of,
    play,
    play_all,
    quality,
)
from optuna.trial import TrialState

from krscale.search.space.space import load_space
from krscale.search.studies.budgets import busy_seconds
from krscale.search.studies.retries import Cause
from krscale.search.studies.transfer import TRANSFERRED_FROM
from krscale.search.studies.trial_spec import FinalKey, TuningKey
from krscale.setup.sizes import StudentSize


def simulate(
    found: Ladder, num_workers: int, seconds_per_epoch: dict[str, float], now: list[float]
) -> tuple[float, float]:
    """Run a ladder on workers with a simulated clock; return the end and the idle time.

    Idle time counts only while the ladder has something to start.
    """
    busy: list[tuple[float, str, int, Assignment]] = []
    idle = 0.0
    while True:
        while len(busy) < num_workers and isinstance(upcoming := found.next(), Assignment):
            step = seconds_per_epoch[upcoming.key.capacity]
            heapq.heappush(busy, (now[0] + step, upcoming.name, 1, upcoming))
        if not busy:
            assert upcoming is Next.DONE
            return now[0], idle
        at, name, epoch, assignment = heapq.heappop(busy)
        if len(busy) + 1 < num_workers and upcoming is not Next.WAIT:
            idle += (num_workers - len(busy) - 1) * (at - now[0])
        now[0] = at
        accuracy = quality(assignment) * epoch / 4
        metrics = {"val/accuracy": accuracy, "val/loss": 1 - accuracy, "epoch": float(epoch)}
        stop = found.report(assignment, metrics)
        if epoch == 4 or stop:
            state = TrialState.COMPLETE if epoch == 4 else TrialState.PRUNED
            found.finish(assignment, state, metrics)
        else:
            step = seconds_per_epoch[assignment.key.capacity]
            heapq.heappush(busy, (now[0] + step, name, epoch + 1, assignment))


def test_a_slow_size_leaves_no_worker_idle(tmp_path: Path) -> None:
    now = [0.0]
    config = experiment(**{"search.trials_per_size": 8, "search.early_stopping": "none"})
    found = ladder(tmp_path, config, clock=lambda: now[0])
    end, idle = simulate(found, 3, {"1/64": 1.0, "1/4": 20.0}, now)
    assert idle == 0.0
    # 2 methods x (8 + 2) trials x 4 epochs at each size: what three busy workers need at least.
    work = 2 * 10 * 4 * (1.0 + 20.0)
    assert end < work / 3 + 4 * 20.0, "longer by at most one of the longest trials"


def test_wall_time_ends_tuning_and_the_winners_are_trained(tmp_path: Path) -> None:
    now = [0.0]
    config = experiment(**{"search.max_wall_seconds": 10.0, "search.trials_per_size": 1000})
    found = ladder(tmp_path, config, clock=lambda: now[0])
    simulate(found, 2, {"1/64": 1.0, "1/4": 1.0}, now)
    for key in found.optuna_studies:
        if not isinstance(key, FinalKey):
            assert 0 < len(found.counted(key)) < 20
            assert found.ended_by(key) == "search.max_wall_seconds = 10 has passed"
            assert found.optuna_studies[key].user_attrs["ended_by"] == "max_wall_seconds"
            assert len(found.finals[FinalKey(key.method, key.capacity)].complete()) == 2


def test_epochs_are_a_budget_over_all_starts(tmp_path: Path) -> None:
    settings = {"search.methods": ["plain"], "search.trials_per_size": 20}
    config = experiment(**settings, **{"search.max_epochs": 30})
    found = ladder(tmp_path, config)
    first = found.next()
    assert isinstance(first, Assignment)
    found.report(first, {"val/accuracy": 0.5, "val/loss": 0.5, "epoch": 1.0})
    del found  # killed: that epoch is recalled by the next attempt, not trained twice
    again = ladder(tmp_path, config)
    play_all(again)
    tuned = [k for k in again.optuna_studies if not isinstance(k, FinalKey)]
    epochs = sum(len(t.intermediate_values) for k in tuned for t in again.counted(k))
    assert 30 <= epochs < 34
    assert again.budget.num_epochs == epochs
    assert "max_epochs" in again.ended_by(tuned[0])
    more = ladder(tmp_path, experiment(**settings, **{"search.max_epochs": 40}))
    assert not more.complete


@pytest.mark.parametrize(
    ("lost", "objectives"),
    # Optuna keeps the values of epochs only in studies with one objective.
    [("worker", ()), ("driver", ()), ("worker", ("flops",)), ("driver", ("flops",))],
)
def test_a_study_whose_winner_is_trained_again_starts_no_more(
    tmp_path: Path, lost: str, objectives: tuple[str, ...]
) -> None:
    """A trial of another study is cut short; its epochs must not be spent twice."""
    settings = {"search.methods": ["plain"], "search.early_stopping": "none"}
    settings["search.objectives"] = ["val/accuracy", *objectives]
    config = experiment(**settings, **{"search.trials_per_size": 20, "search.max_epochs": 8})
    found = ladder(tmp_path, config)
    large, small = next_assignment(found), next_assignment(found)
    play(found, large)
    metrics = {"val/accuracy": 0.5, "val/loss": 0.5}
    for epoch in range(1, 5):
        found.report(small, metrics | {"epoch": float(epoch)})
    assert isinstance(next_assignment(found).key, FinalKey)
    if lost == "worker":
        found.interrupt(small, Cause.WORKER, metrics | {"epoch": 4.0}, "gone")
    else:
        found = ladder(tmp_path, config)
    started = [next_assignment(found) for _ in range(2)]
    assert large.key not in [assignment.key for assignment in started]
    assert (started[0].key, started[0].values) == (small.key, small.values)
    assert found.budget.num_epochs == 8
    assert isinstance(started[1].key, FinalKey)
    play(found, started[0])
    assert found.budget.num_epochs == 8, "recalled, or trained in place of what was lost"


@pytest.mark.parametrize("lost", ["driver", "worker"])
def test_a_search_that_max_epochs_ended_has_ended_for_the_next_start(
    tmp_path: Path, lost: str
) -> None:
    """An attempt spent four epochs and was interrupted; the next one failed before its first."""
    settings = {"search.methods": ["plain"], "search.early_stopping": "none"}
    config = experiment(**settings, **{"search.trials_per_size": 20, "search.max_epochs": 8})
    found = ladder(tmp_path, config)
    large, small = next_assignment(found), next_assignment(found)
    metrics = {"val/accuracy": 0.5, "val/loss": 0.5}
    for epoch in range(1, 5):
        found.report(small, metrics | {"epoch": float(epoch)})
    play(found, large)
    if lost == "worker":
        found.interrupt(small, Cause.WORKER, metrics | {"epoch": 4.0}, "gone")
    else:
        found = ladder(tmp_path, config)
    found.finish(next_of(found, small.key), TrialState.FAIL, {}, "no more memory on its device")
    play_all(found)
    assert found.budget.num_epochs == 8
    again = ladder(tmp_path, config)
    assert again.budget.num_epochs == 8
    assert again.complete


def test_a_study_that_reached_the_target_starts_no_more(tmp_path: Path) -> None:
    config = experiment(
        **{"search.target_accuracy": 0.999, "train.learning_rate": 0.1, "search.trials_per_size": 9}
    )
    found = ladder(tmp_path, config)
    played = play_all(found)
    for key in found.optuna_studies:
        # The user's own setting, tried first, is the best possible one here.
        assert sum(a.key == key for a in played) == (2 if isinstance(key, FinalKey) else 1)
        if not isinstance(key, FinalKey):
            assert "target_accuracy" in found.ended_by(key)
            assert found.studies[key].ended_by == "target_accuracy"


def test_what_ended_a_study_is_kept_until_it_goes_on(tmp_path: Path) -> None:
    now = [0.0]
    settings = {"search.methods": ["plain"], "search.trials_per_size": 3}
    limited = experiment(**settings, **{"search.max_wall_seconds": 50.0})
    found = ladder(tmp_path, limited, clock=lambda: now[0])
    key = TuningKey("plain", "1/4")
    assert found.studies[key].ended_by == ""
    while isinstance(upcoming := found.next(), Assignment):
        now[0] += 100.0 * isinstance(upcoming.key, FinalKey)  # the time passes while finals run
        play(found, upcoming)
    assert found.studies[key].ended_by == "trials_per_size", "not the limit that passed later"

    # With a larger budget it goes on, and something else ends it, though the winner stays the same.
    more = {**settings, "search.trials_per_size": 30, "search.max_epochs": 30}
    again = ladder(tmp_path, experiment(**more))
    assert again.studies[key].ended_by == "trials_per_size"
    upcoming = again.next()
    assert isinstance(upcoming, Assignment)
    assert again.studies[upcoming.key].ended_by == ""
    play(again, upcoming)
    play_all(again)
    assert {again.studies[k].ended_by for k in again.studies if not isinstance(k, FinalKey)} == {
        "max_epochs"
    }
    reread = ladder(tmp_path, experiment(**more))
    assert reread.next() is Next.DONE
    assert reread.studies[key].ended_by == "max_epochs"

    # An older krscale wrote a sentence there.
    reread.optuna_studies[key].set_user_attr("ended_by", "search.max_epochs = 30 are spent")
    last = ladder(tmp_path, experiment(**more))
    assert last.studies[key].ended_by == ""
    assert last.complete
    assert last.studies[key].ended_by == "max_epochs"


def test_only_time_with_running_trials_counts() -> None:
    start = datetime(2026, 1, 1)
    spans = [(0, 10), (5, 12), (6, 8), (20, 21)]
    at = [(start + timedelta(seconds=a), start + timedelta(seconds=b)) for a, b in spans]
    assert busy_seconds(reversed(at)) == 13.0


def test_a_search_that_its_time_has_ended_is_finished(tmp_path: Path) -> None:
    """The times of its trials add up to less: they include neither Ray's start nor a pause."""
    now = [0.0]
    limited = {"search.max_wall_seconds": 20.0, "search.trials_per_size": 20}

    def opened(**changes: object) -> Ladder:
        return ladder(tmp_path, experiment(**{**limited, **changes}), clock=lambda: now[0])

    found = opened()
    now[0] += 8.0
    simulate(found, 2, {"1/64": 1.0, "1/4": 1.0}, now)
    before = {key: len(found.counted(key)) for key in found.studies}
    for _ in range(2):
        now[0] += 1000.0
        again = opened()
        assert again.next() is Next.DONE
        assert {key: len(again.counted(key)) for key in again.studies} == before
    longer = opened(**{"search.max_wall_seconds": 25.0})
    assert isinstance(longer.next(), Assignment)
    now[0] += 5.0
    assert longer.budget.spent()


def test_time_that_passes_before_a_trial_begins_is_noted_all_the_same(tmp_path: Path) -> None:
    """Ray takes seconds to start; if they were not noted, each start would train nothing."""
    now = [0.0]

    def opened(seconds: float) -> Ladder:
        config = experiment(**{"search.max_wall_seconds": seconds, "search.trials_per_size": 20})
        return ladder(tmp_path, config, clock=lambda: now[0])

    found = opened(20.0)
    now[0] += 8.0
    simulate(found, 2, {"1/64": 1.0, "1/4": 1.0}, now)
    longer = opened(25.0)
    assert not longer.complete
    now[0] += 6.0
    assert longer.next() is Next.DONE
    again = opened(25.0)
    assert again.complete
    assert {study.ended_by for study in again.tuning.values()} == {"max_wall_seconds"}
    assert not opened(50.0).complete


def test_a_larger_plan_that_cannot_begin_is_said_to_be_ended_by_what_forbids_it(
    tmp_path: Path,
) -> None:
    settings = {"search.methods": ["plain"], "search.max_epochs": 24, "search.num_final_seeds": 1}
    settings["search.early_stopping"] = "none"
    found = ladder(tmp_path, experiment(**settings, **{"search.trials_per_size": 3}))
    play_all(found)
    assert {study.ended_by for study in found.tuning.values()} == {"trials_per_size"}
    more = ladder(tmp_path, experiment(**settings, **{"search.trials_per_size": 9}))
    assert more.next() is Next.DONE
    assert {study.ended_by for study in more.tuning.values()} == {"max_epochs"}


@pytest.mark.parametrize("lost", ["driver", "worker"])
@pytest.mark.parametrize(
    "limit",
    [{"search.max_wall_seconds": 10.0}, {"search.max_epochs": 12}, {"search.target_accuracy": 0.5}],
)
def test_what_ran_when_a_limit_was_reached_is_run_to_its_end(
    tmp_path: Path, limit: dict[str, object], lost: str
) -> None:
    """Fails if the trial is lost: no trial may begin after the limit, but this one had begun."""
    now = [0.0]
    settings = {"search.methods": ["plain"], "search.early_stopping": "none", **limit}
    config = experiment(**settings, **{"search.trials_per_size": 20})
    found = ladder(tmp_path, config, clock=lambda: now[0])
    running, *others = (next_assignment(found) for _ in range(4))
    now[0] += 11.0
    for assignment in others:
        play(found, assignment)
    final = next_assignment(found)
    assert isinstance(final.key, FinalKey), "of the other size, which has ended"
    if lost == "worker":
        found.interrupt(running, Cause.WORKER, {}, "gone")
        play(found, final)
    else:
        found = ladder(tmp_path, config, clock=lambda: now[0])
    tuned = [a for a in play_all(found) if isinstance(a.key, TuningKey)]
    assert [(a.key, a.values) for a in tuned] == [(running.key, running.values)]
    for size in ("1/4", "1/64"):
        assert len(found.counted(TuningKey("plain", size))) == 2
        assert len(found.finals[FinalKey("plain", size)].complete()) == 2
    name = next(iter(limit)).removeprefix("search.")
    assert {study.ended_by for study in found.tuning.values()} == {name}


def next_assignment(found: Ladder) -> Assignment:
    upcoming = found.next()
    assert isinstance(upcoming, Assignment)
    return upcoming


@pytest.mark.parametrize("transfer", [True, False])
def test_neighbours_lend_their_best_settings_within_the_budget(
    tmp_path: Path, transfer: bool
) -> None:
    settings = {"search.methods": ["plain"], "search.trials_per_size": 10}
    # A poor setting of the user's own, so that a neighbour's best is another.
    config = experiment(**settings, **{"search.transfer": transfer, "train.learning_rate": 0.45})
    found = ladder(tmp_path, config)
    play_all(found)
    lent = [
        (key, trial) for key in found.optuna_studies for trial in found.counted(key)
        if TRANSFERRED_FROM in trial.user_attrs
    ]  # fmt: skip
    assert bool(lent) is transfer
    for key, trial in lent:
        other, _, number = trial.user_attrs[TRANSFERRED_FROM].rpartition(" trial ")
        assert other != key.name
        source = found.optuna_studies[TuningKey("plain", other.removeprefix("plain@"))].trials[
            int(number)
        ]
        assert trial.params == source.params
        assert trial.number <= 6
    for key in found.optuna_studies:
        assert len(found.counted(key)) == found.planned(key)


def test_settings_of_a_neighbour_do_not_begin_after_a_limit(tmp_path: Path) -> None:
    """They were enqueued before a trial that was lost later, and were handed out in its place."""
    now, key = [0.0], TuningKey("plain", "1/16")
    config = experiment(
        **{
            "search.methods": ["plain"], "search.trials_per_size": 20, "search.transfer": True,
            "search.max_wall_seconds": 10.0, "train.learning_rate": 0.45,
        }
    )  # fmt: skip
    sizes = (*SIZES, StudentSize(key.capacity, 4, 4000, 40_000))
    space = load_space(config, 6)
    found = Ladder(tmp_path / "journal.log", config, space, sizes, clock=lambda: now[0])
    study, asked = found.tuning[key], list[Assignment]()
    while not asked or not study.num_waiting:  # until both neighbours lend settings at once
        asked = [next_assignment(found) for _ in sizes]
        for assignment in asked:
            if assignment.key != key or not study.num_waiting:
                play(found, assignment)
    (lent,) = (assignment for assignment in asked if assignment.key == key)
    now[0] += 11.0
    found.interrupt(lent, Cause.WORKER, {}, "gone")
    tuned = [assignment for assignment in play_all(found) if isinstance(assignment.key, TuningKey)]
    assert [(each.key, each.values) for each in tuned] == [(key, lent.values)]
    assert study.num_waiting == 1, "for a search with a larger limit"
    assert found.ended_by(key) == "search.max_wall_seconds = 10 has passed"
