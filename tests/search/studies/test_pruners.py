"""Early stopping by name: which trials it stops, when, and the reason it gives."""

import statistics

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from krscale.config import SearchConfig
from krscale.search.studies.pruners import Stop, expected_share, find_stop, make_pruner, milestones
from krscale.search.studies.retries import INTERRUPTED


def config(**changes: object) -> SearchConfig:
    return SearchConfig.model_validate(changes)


class Played:
    """A study whose trials report the accuracies that a test gives, one after another."""

    def __init__(self, num_epochs: int, **changes: object) -> None:
        self.num_epochs = num_epochs
        pruner = make_pruner(config(**changes), num_epochs)
        self.study = optuna.create_study(direction="maximize", pruner=pruner)

    def play(self, *accuracies: float, interrupted: bool = False) -> Stop | None:
        """Run a trial with these accuracies, from epoch 1; return why it was stopped, if it was."""
        trial, stop = self.study.ask(), None
        for epoch, accuracy in enumerate(accuracies, 1):
            trial.report(accuracy, epoch)
            stop = find_stop(trial, self.num_epochs)
            if epoch == self.num_epochs:
                stop = None  # there is nothing left to stop
            if stop:
                break
        if interrupted:
            trial.set_user_attr(INTERRUPTED, "its worker was lost")
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            state = TrialState.PRUNED if stop else TrialState.COMPLETE
            self.study.tell(trial, None if stop else accuracies[-1], state=state)
        return stop


def test_median_stops_the_worse_half_after_grace_and_enough_trials() -> None:
    played = Played(4, early_stopping="median", grace_epochs=2, trials_per_size=12)
    first = [played.play(accuracy, accuracy) for accuracy in (0.5, 0.1, 0.9)]
    assert first == [None] * 3, "too few to judge"
    assert played.play(0.4, 0.4) is not None
    assert played.play(0.6, 0.6) is None
    assert played.play(0.0) is None, "still in its grace epochs"


def test_reports_do_not_run_past_a_decision() -> None:
    assert milestones(config(early_stopping="asha", grace_epochs=2), 16) == (2, 4, 8)
    assert milestones(config(early_stopping="median", grace_epochs=2), 6) == (2, 3, 4, 5)
    assert milestones(config(early_stopping="none"), 16) == ()


def test_asha_says_whom_a_trial_was_compared_with() -> None:
    played = Played(8, early_stopping="asha", grace_epochs=2)
    # At epoch 2: 0.5; 0.7 and 0.9 are each the best so far and go on.
    assert [played.play(0.1, value) for value in (0.5, 0.7, 0.9)] == [None] * 3
    stop = played.play(0.1, 0.612)
    # Two of the four are kept: 0.9 and 0.7.
    assert stop == Stop(
        "asha", 2, 8, 0.612, 0.7, "the last of the best 2 of 4 trials at this epoch"
    )
    assert stop.text == (
        "asha stopped it after epoch 2 of 8: validation accuracy 61.20 % is below 70.00 %, the "
        "last of the best 2 of 4 trials at this epoch"
    )


def test_asha_keeps_the_best_alone_of_few_trials_and_names_a_later_milestone() -> None:
    played = Played(16, early_stopping="asha", grace_epochs=2, reduction_factor=3)
    assert played.play(0.1, 0.5, 0.5, 0.5, 0.5, 0.9) is None
    stop = played.play(0.1, 0.4)
    assert stop == Stop("asha", 2, 16, 0.4, 0.5, "the best of 2 trials at this epoch")
    later = played.play(0.1, 0.6, 0.7, 0.8, 0.8, 0.8)
    assert later == Stop("asha", 6, 16, 0.8, 0.9, "the best of 2 trials at this epoch")


def test_median_says_the_median_and_the_best_that_the_trial_had() -> None:
    played = Played(5, early_stopping="median", grace_epochs=2, trials_per_size=12)
    for at_three in (0.5, 0.6, 0.8):
        assert played.play(0.1, 0.1, at_three, 0.9, 0.9) is None
    stop = played.play(0.1, 0.45, 0.3)
    assert stop == Stop("median", 3, 5, 0.45, 0.6, "the median of 3 whole trials at this epoch")


def test_an_interrupted_trial_is_no_competitor() -> None:
    played = Played(8, early_stopping="asha", grace_epochs=2)
    assert played.play(0.1, 0.5) is None
    assert played.play(0.1, 0.9, interrupted=True) is None
    stop = played.play(0.1, 0.4)
    assert stop is not None
    assert (stop.threshold, stop.competitors) == (0.5, "the best of 2 trials at this epoch")


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(["asha", "median"]),
    factor=st.integers(2, 4),
    trials=st.lists(st.lists(st.integers(0, 20), min_size=8, max_size=8), min_size=4, max_size=14),
)
def test_what_it_says_is_what_optuna_decided(
    rule: str, factor: int, trials: list[list[int]]
) -> None:
    """A stopped trial is below its threshold: another trial's value, or the median of whole trials.

    The accuracies are small whole numbers over 20, so that equal ones are common.
    """
    played = Played(8, early_stopping=rule, grace_epochs=1, reduction_factor=factor)
    epochs = milestones(config(early_stopping=rule, grace_epochs=1, reduction_factor=factor), 8)
    for accuracies in trials:
        stop = played.play(*(value / 20 for value in accuracies))
        if stop is None:
            continue
        assert stop.value < stop.threshold
        assert stop.epoch in epochs
        seen = [t.intermediate_values[stop.epoch] for t in played.study.trials[:-1]
                if stop.epoch in t.intermediate_values]  # fmt: skip
        if rule == "asha":
            assert stop.threshold in seen
        else:
            whole = [t.intermediate_values[stop.epoch] for t in played.study.trials
                     if t.state is TrialState.COMPLETE]  # fmt: skip
            assert stop.threshold == pytest.approx(statistics.median(whole))


def test_the_share_of_its_epochs_that_a_trial_is_expected_to_get():
    # 4 epochs for all, 4 more for a half, 4 more for a quarter.
    asha = config(early_stopping="asha", grace_epochs=4, reduction_factor=2)
    assert expected_share(asha, 12) == pytest.approx(7 / 12)
    assert expected_share(asha, 4) == 1.0, "its grace is all there is"
    assert expected_share(asha, 3) == 1.0
    thirds = config(early_stopping="asha", grace_epochs=1, reduction_factor=3)
    assert expected_share(thirds, 9) == pytest.approx((1 + 2 / 3 + 6 / 9) / 9)
    # A third for every trial, and half of the rest on average.
    assert expected_share(config(early_stopping="median", grace_epochs=4), 12) == pytest.approx(
        2 / 3
    )
    assert expected_share(config(early_stopping="none"), 12) == 1.0
