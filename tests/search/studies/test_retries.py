"""Trials that are run again: what an attempt keeps of those before it, and how many there are."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import Trial, TrialState

from krscale.search.studies.retries import (
    ALONE,
    CONTINUES,
    NUM_LOST,
    RETRY_OF,
    SEED,
    Cause,
    deserves_retry,
    epochs_reached,
    run_again,
    was_interrupted,
    why_given_up,
)


def attempt(study: optuna.Study) -> Trial:
    trial = study.ask()
    trial.suggest_float("train.learning_rate", 0.01, 1.0)
    return trial


def known(trial: Trial) -> dict[str, object]:
    """Return the attributes of a trial, except the number of the trial that it repeats."""
    return {name: value for name, value in trial.user_attrs.items() if name != RETRY_OF}


def test_an_attempt_knows_what_cut_all_before_it_short() -> None:
    study = optuna.create_study()
    first = attempt(study)
    first.set_user_attr(SEED, 1007)
    expected: dict[str, object] = {SEED: 1007}
    last = first
    for cause, has_checkpoint, learnt in (
        (Cause.SEARCH, False, {}),
        (Cause.MEMORY, True, {ALONE: True, CONTINUES: 1}),
        (Cause.WORKER, False, {NUM_LOST: 1}),
        (Cause.ROOM, False, {}),
        (Cause.SEARCH, True, {CONTINUES: 4}),
        (Cause.WORKER, False, {NUM_LOST: 2}),
    ):
        run_again(study, last.number, cause, has_checkpoint=has_checkpoint)
        before, last = last, attempt(study)
        expected |= learnt
        assert last.user_attrs[RETRY_OF] == before.number
        assert known(last) == expected, cause
        assert last.params == first.params
    *ended, running = study.trials
    assert all(t.state is TrialState.FAIL and was_interrupted(t) for t in ended)
    assert not was_interrupted(running)


def test_how_often_a_trial_is_run_again() -> None:
    study = optuna.create_study()
    for cause, num_retries in ((Cause.MEMORY, 1), (Cause.WORKER, 2)):
        trial = attempt(study)
        for _ in range(num_retries):
            assert deserves_retry(trial, cause, max_retries=2)
            run_again(study, trial.number, cause, has_checkpoint=False)
            trial = attempt(study)
        assert not deserves_retry(trial, cause, max_retries=2)
        others = set(Cause) - {cause}
        assert all(deserves_retry(trial, other, max_retries=2) for other in others)
        said = {
            Cause.MEMORY: "it ran out of memory, also when it ran alone",
            Cause.WORKER: "its worker was lost 3 times",
        }
        assert why_given_up(trial, cause) == said[cause]
        study.tell(trial, 0.0)
    first = attempt(study)
    assert not deserves_retry(first, Cause.WORKER, max_retries=0)
    assert why_given_up(first, Cause.WORKER) == "its worker was lost"


def test_epochs_that_any_attempt_reached() -> None:
    study = optuna.create_study()
    first = attempt(study)
    for epoch in (1, 2, 3):
        first.report(0.5, epoch)
    run_again(study, first.number, Cause.WORKER, has_checkpoint=False)
    second = attempt(study)
    assert epochs_reached(study, second.number) == 3
    second.report(0.5, 1)
    run_again(study, second.number, Cause.SEARCH, has_checkpoint=False)
    assert [epochs_reached(study, number) for number in range(3)] == [3, 3, 3]
    third = attempt(study)
    third.report(0.5, 4)
    other = attempt(study)
    assert [epochs_reached(study, t.number) for t in (third, other)] == [4, 0]


def test_a_trial_that_had_no_settings_yet_is_run_again() -> None:
    study = optuna.create_study()
    trial = study.ask()
    trial.set_user_attr(SEED, 1007)
    run_again(study, trial.number, Cause.SEARCH, has_checkpoint=False)
    again = attempt(study)
    assert (again.number, known(again)) == (1, {SEED: 1007})
    assert again.user_attrs[RETRY_OF] == 0


def test_a_process_that_ends_amid_it_leaves_one_more_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    study = optuna.create_study()
    trial = attempt(study)
    with monkeypatch.context() as patch:
        patch.setattr(study, "tell", killed)
        with pytest.raises(KeyboardInterrupt):
            run_again(study, trial.number, Cause.SEARCH, has_checkpoint=False)
    assert study.trials[trial.number].state is TrialState.RUNNING, "found by the next start"
    run_again(study, trial.number, Cause.SEARCH, has_checkpoint=False)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]
