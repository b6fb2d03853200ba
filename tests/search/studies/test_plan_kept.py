"""A search keeps to its plan despite defects, and the reason of every stopped trial is kept."""

import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from ladder_play import SIZES, Assignment, Ladder, Next, experiment, ladder, next_of, play, play_all
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from krscale.errors import KrscaleError, UserError
from krscale.search.space.space import load_space
from krscale.search.studies.pruners import STOPPED
from krscale.search.studies.retries import Cause
from krscale.search.studies.size_resolver import FixedSizeResolver
from krscale.search.studies.study import FinalStudy, TuningStudy
from krscale.search.studies.trial_spec import FinalKey, TuningKey

ONE = {"search.methods": ["plain"]}
GRID = """
[plain]
"train.momentum" = { type = "categorical", choices = [0.8, 0.9, 0.95] }
"train.learning_rate" = { type = "float", low = 0.1, high = 0.2, step = 0.1 }
"""
OLD_SPACE = """
[plain]
"train.learning_rate" = { type = "float", low = 0.03, high = 0.5, log = true }
"train.weight_decay" = { type = "float", low = 1e-5, high = 5e-3, log = true }
"""


def space_of(folder: Path, text: str) -> dict[str, object]:
    path = folder / "space.toml"
    path.write_text(text)
    return {**ONE, "search.space": str(path)}


def forget_ended_trials(monkeypatch: pytest.MonkeyPatch, kind: type[TuningStudy]) -> None:
    """Bring back the defect that once let a search run for ever: ended trials are not counted."""
    monkeypatch.setattr(kind, "num_started", property(lambda study: study.num_running))


@pytest.mark.parametrize("stopping", ["asha", "none"])
def test_a_search_that_miscounts_stops_at_its_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopping: str
) -> None:
    forget_ended_trials(monkeypatch, TuningStudy)
    found = ladder(tmp_path, experiment(**ONE, **{"search.early_stopping": stopping}))
    played = []

    def go_on() -> None:
        while len(played) < 100 and isinstance(upcoming := found.next(), Assignment):
            play(found, upcoming)
            played.append(upcoming)

    with pytest.raises(KrscaleError) as caught:
        go_on()
    assert not isinstance(caught.value, UserError), "no input causes it"
    assert "internal error: the study plain@1/" in str(caught.value)
    assert "has started 5 trials and would start another; its plan is 5" in str(caught.value)
    assert 5 <= len(played) <= 10, "two studies of five"


def test_finals_that_are_miscounted_stop_at_their_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ladder(tmp_path, experiment(**ONE))
    play_all(found)
    key = FinalKey("plain", "1/4")
    assert len(found.counted(key)) == 2
    forget_ended_trials(monkeypatch, FinalStudy)
    winner = found.winner("plain", "1/4")
    assert winner is not None
    found.optuna_studies[key].enqueue_trial(winner.params, user_attrs={"seed": 1})
    found.studies[key].recount()
    with pytest.raises(KrscaleError, match=r"plain@1/4 final has started 2 trials .* plan is 2"):
        found.next()


def test_trials_that_are_cut_short_do_not_fill_the_plan(tmp_path: Path) -> None:
    found = ladder(tmp_path, experiment(**ONE, **{"search.max_retries": 50}))
    key = TuningKey("plain", "1/4")
    for _ in range(12):
        found.interrupt(next_of(found, key), Cause.WORKER, {}, "gone")
    play_all(found)
    assert len(found.counted(key)) == 5
    assert len(found.optuna_studies[key].trials) == 5 + 12


def test_finals_that_wait_from_a_larger_plan_are_not_run(tmp_path: Path) -> None:
    before = ladder(tmp_path, experiment(**ONE, **{"search.num_final_seeds": 4}))
    while isinstance(upcoming := before.next(), Assignment):
        play(before, upcoming)
        if isinstance(upcoming.key, FinalKey):
            break
    del before  # killed with three finals of that study waiting
    after = ladder(tmp_path, experiment(**ONE, **{"search.num_final_seeds": 2}))
    play_all(after)
    assert after.complete
    for size in SIZES:
        finals = after.finals[FinalKey("plain", size.capacity)].complete()
        assert [trial.user_attrs["seed"] for trial in finals] == [1000, 1001]


def test_settings_that_win_are_trained_again_whatever_the_limits_say(tmp_path: Path) -> None:
    """Fails if a final that is forbidden is replaced by random settings."""

    class Shrinking(FixedSizeResolver):
        allowed = True

        def excess(self, capacity: str, values: Mapping[str, Any]) -> dict[str, float]:
            return {} if self.allowed else {"slow": 1.0}

    sizes = Shrinking({size.capacity: size for size in SIZES})
    found = ladder(tmp_path, experiment(**ONE), size_resolver=sizes)
    while isinstance(upcoming := found.next(), Assignment) and not isinstance(
        upcoming.key, FinalKey
    ):
        play(found, upcoming)
    sizes.allowed = False
    finals = [upcoming]
    assert isinstance(upcoming, Assignment)
    play(found, upcoming)
    finals += play_all(found)
    for assignment in finals:
        assert isinstance(assignment, Assignment)
        winner = found.winner("plain", assignment.key.capacity)
        assert winner is not None
        assert dict(assignment.values) == winner.params
    assert len(finals) == 4


class OnlyMuchMomentum(FixedSizeResolver):
    """Forbids a third of the grid."""

    def excess(self, capacity: str, values: Mapping[str, Any]) -> dict[str, float]:
        return {"slow": 1.0} if values["train.momentum"] == 0.8 else {}


@pytest.mark.parametrize("num_trials", [4, 6, 9])
@pytest.mark.parametrize("forbids", [False, True])
def test_a_grid_is_tried_point_by_point_and_never_twice(
    tmp_path: Path, num_trials: int, forbids: bool
) -> None:
    settings = {**space_of(tmp_path, GRID), "search.sampler": "grid"}
    config = experiment(**settings, **{"search.trials_per_size": num_trials})
    sizes = (OnlyMuchMomentum if forbids else FixedSizeResolver)(
        {size.capacity: size for size in SIZES}
    )
    found = ladder(tmp_path, config, size_resolver=sizes)
    key = TuningKey("plain", "1/4")
    first = next_of(found, key)
    found.interrupt(first, Cause.WORKER, {}, "gone")  # its point is tried again, no other twice
    played = [a for a in play_all(found) if a.key == key]
    points = [tuple(sorted(a.values.items())) for a in played]
    assert len(points) == len(set(points)) == min(num_trials, 4 if forbids else 6)
    ending = found.studies[key].ended_by
    if forbids and num_trials > 4:
        assert ending == "size_limits"
        assert "every other point of the grid" in found.ended_by(key)
    else:
        assert ending == ("grid" if num_trials > 6 else "trials_per_size")


class OnlySlowRates(FixedSizeResolver):
    """Forbids nearly all that a sampler suggests."""

    def excess(self, capacity: str, values: Mapping[str, Any]) -> dict[str, float]:
        return {"slow": 1.0} if values["train.learning_rate"] > 0.0301 else {}


def test_a_study_that_was_given_up_is_looked_at_again_for_a_larger_plan_only(
    tmp_path: Path,
) -> None:
    sizes = OnlySlowRates({size.capacity: size for size in SIZES})

    def opened(num_trials: int) -> Ladder:
        config = experiment(**ONE, **{"search.trials_per_size": num_trials})
        return ladder(tmp_path, config, size_resolver=sizes)

    def num_asked(found: Ladder) -> list[int]:
        return [len(study.trials) for study in found.optuna_studies.values()]

    found = opened(3)
    play_all(found)
    assert {study.ended_by for study in found.tuning.values()} == {"size_limits"}
    again = opened(3)
    assert again.complete
    assert again.next() is Next.DONE
    assert num_asked(again) == num_asked(found)
    assert "broke a limit" in again.ended_by(TuningKey("plain", "1/4"))
    assert not opened(4).complete


def test_what_ran_when_a_study_was_given_up_is_run_again_after_a_crash(tmp_path: Path) -> None:
    class LargestAlone(FixedSizeResolver):
        num_allowed = 2

        def excess(self, capacity: str, values: Mapping[str, Any]) -> dict[str, float]:
            self.num_allowed -= 1
            return {} if self.num_allowed >= 0 else {"slow": 1.0}

    sizes = LargestAlone({SIZES[0].capacity: SIZES[0]})
    config, key = experiment(**ONE), TuningKey("plain", "1/64")

    def opened() -> Ladder:
        space = load_space(config, 6)
        return Ladder(tmp_path / "journal.log", config, space, SIZES[:1], size_resolver=sizes)

    found = opened()
    play(found, next_of(found, key))
    assert isinstance(found.next(), Assignment)
    assert found.next() is Next.WAIT, "no other student is allowed"
    sizes.num_allowed = 1  # the one that ran when the search was killed
    after = opened()
    played = play_all(after)
    assert [trial.key == key for trial in played].count(True) == 1
    assert len(after.counted(key)) == 2
    assert after.tuning[key].ended_by == "size_limits"


def test_a_point_of_a_grid_that_was_enqueued_and_is_forbidden_leaves_no_other_tried_twice(
    tmp_path: Path,
) -> None:
    """The search died between asking for the point and recording that it is forbidden."""
    settings = {**space_of(tmp_path, GRID), "search.sampler": "grid"}
    config = experiment(**settings, **{"search.trials_per_size": 6})
    sizes = OnlyMuchMomentum({size.capacity: size for size in SIZES})
    found = ladder(tmp_path, config, size_resolver=sizes)
    played = play_all(found)
    key = TuningKey("plain", "1/4")
    forbidden = next(t for t in found.optuna_studies[key].trials if "forbidden" in t.user_attrs)
    found.optuna_studies[key].enqueue_trial(forbidden.params)
    again = ladder(tmp_path, config, size_resolver=sizes)
    played += play_all(again)
    points = [tuple(sorted(a.values.items())) for a in played if a.key == key]
    assert len(points) == len(set(points)) == 4


def test_running_trials_of_a_grid_are_not_doubled(tmp_path: Path) -> None:
    """All workers ask at once: the last points are handed out while the others still run."""
    settings = {**space_of(tmp_path, GRID), "search.sampler": "grid"}
    found = ladder(tmp_path, experiment(**settings, **{"search.trials_per_size": 50}))
    running = list(itertools.takewhile(lambda a: isinstance(a, Assignment), iter(found.next, None)))
    assert len(running) == 2 * 6
    assert len({(a.key, tuple(sorted(a.values.items()))) for a in running}) == 2 * 6


class Reasons:
    """A listener that keeps how trials ended."""

    def __init__(self) -> None:
        self.ends: dict[str, tuple[str, str]] = {}

    def on_start(self, assignment: Assignment) -> None:
        pass

    def on_epoch(self, assignment: Assignment, metrics: object) -> None:
        pass

    def on_end(
        self, assignment: Assignment, state: TrialState, metrics: object, reason: str
    ) -> None:
        self.ends[assignment.name] = state.name, reason


@pytest.mark.parametrize("rule", ["asha", "median"])
def test_every_stopped_trial_says_why_in_the_journal_and_to_whoever_listens(
    tmp_path: Path, rule: str
) -> None:
    reasons = Reasons()
    settings = {"search.early_stopping": rule, "search.trials_per_size": 12}
    found = ladder(tmp_path, experiment(**settings), (reasons,))
    play_all(found)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    num_stopped = 0
    for key in found.studies:
        for trial in optuna.load_study(study_name=key.name, storage=storage).trials:
            text = trial.user_attrs.get(STOPPED, "")
            state, told = reasons.ends[found.trial_name(key, trial.number)]
            assert (state, told) == (trial.state.name, text)
            assert bool(text) == (trial.state is TrialState.PRUNED)
            if text:
                num_stopped += 1
                epoch = int(trial.user_attrs["epoch"])
                assert text.startswith(f"{rule} stopped it after epoch {epoch} of 4: ")
    assert num_stopped >= 4


def test_a_trial_that_went_beyond_a_verdict_is_not_said_to_be_stopped(tmp_path: Path) -> None:
    """A trial that goes on from a checkpoint reports many epochs at once; only the last counts."""
    found = ladder(tmp_path, experiment(**ONE))

    def report(assignment: Assignment, epoch: int, accuracy: float) -> bool:
        metrics = {"val/accuracy": accuracy, "val/loss": 0.0, "epoch": float(epoch)}
        return found.report(assignment, metrics)

    key = TuningKey("plain", "1/4")
    best = next_of(found, key)
    assert not report(best, 2, 0.9)
    worse = next_of(found, key)
    assert report(worse, 2, 0.1)
    report(worse, 3, 0.95)
    metrics = {"val/accuracy": 0.95, "val/loss": 0.0, "epoch": 4.0}
    found.report(worse, metrics)
    found.finish(worse, TrialState.COMPLETE, metrics)
    attrs = found.optuna_studies[key].trials[worse.number].user_attrs
    assert not {STOPPED, "error"} & set(attrs)


def continued(folder: Path, listener: Reasons | None = None) -> Ladder:
    """Open the journal that krscale wrote at commit 3afaaac with the current krscale.

    A search over `OLD_SPACE` of six trials a study, killed while the last two ran; seven of the
    other ten had been stopped early.
    """
    journal = Path(__file__).parent / "journals" / "3afaaac.jsonl"
    shutil.copy(journal, folder / "journal.log")
    settings = {**space_of(folder, OLD_SPACE), "search.trials_per_size": 6}
    return ladder(folder, experiment(**settings), (listener,) if listener else ())


def test_a_journal_of_3afaaac_is_continued(tmp_path: Path) -> None:
    reasons = Reasons()
    found = continued(tmp_path, reasons)
    played = play_all(found)
    assert [isinstance(a.key, FinalKey) for a in played].count(False) == 2, (
        "those that were running"
    )
    assert [isinstance(a.key, FinalKey) for a in played].count(True) == 2 * 2
    for size in SIZES:
        trials = found.counted(TuningKey("plain", size.capacity))
        assert len(trials) == 6
        stopped = [t for t in trials if t.state is TrialState.PRUNED]
        assert [t for t in stopped if t.number < 5], "they were stopped before there were reasons"
        assert all(STOPPED in t.user_attrs for t in stopped if t.number > 5)
    assert found.next() is Next.DONE
