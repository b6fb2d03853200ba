"""Trials that were interrupted by no fault of their own: told FAIL, not counted, and run again.

There are four causes. The search itself died: its trials are run again, however often that happens.
A worker or node was lost: again, up to `search.max_retries` times. There was not enough memory:
again once, alone on a machine. The cluster has become too small for the workers that a waiting
trial needs: again, with fewer. An exception in a user's code, or a loss that is not finite, would
only happen again; those trials are FAIL and count.
"""

from __future__ import annotations

from enum import Enum

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from krscale.search.studies.samplers import grid_point

INTERRUPTED = "interrupted"
"""User attribute of a trial that was interrupted; such trials do not count."""
RETRY_OF = "retry_of"
CONTINUES = "continues"
ALONE = "alone"
NUM_LOST = "num_lost"
"""How many workers a trial's earlier attempts have lost."""
SEED = "seed"
LAST_EPOCH = "last_epoch"
"""The last epoch that a trial with several objectives has reported, of which Optuna keeps none."""
_INHERITED = (SEED, CONTINUES, ALONE, NUM_LOST, "transferred_from")


class Cause(Enum):
    """Why a trial was interrupted."""

    SEARCH = "the search was interrupted"
    WORKER = "its worker was lost"
    MEMORY = "it ran out of memory"
    ROOM = "it waited for more workers than are left"

    @property
    def text(self) -> str:
        """The reason that listeners receive."""
        return f"{INTERRUPTED}: {self.value}"


def deserves_retry(trial: FrozenTrial | Trial, cause: Cause, max_retries: int) -> bool:
    """Return whether an interrupted trial is run again; otherwise it is FAIL like any other."""
    if cause is Cause.WORKER:
        return int(trial.user_attrs.get(NUM_LOST, 0)) < max_retries
    if cause is Cause.MEMORY:
        return not trial.user_attrs.get(ALONE, False)
    return True


def why_given_up(trial: FrozenTrial | Trial, cause: Cause) -> str:
    """Return why an interrupted trial is not run again, as the start of a sentence."""
    if cause is Cause.WORKER:
        times = 1 + int(trial.user_attrs.get(NUM_LOST, 0))
        return f"{cause.value} {times} times" if times > 1 else cause.value
    return f"{cause.value}, also when it ran alone" if cause is Cause.MEMORY else cause.value


def run_again(study: optuna.Study, number: int, cause: Cause, *, has_checkpoint: bool) -> None:
    """Tell a RUNNING trial FAIL and enqueue its settings once more.

    Args:
        study: The trial's study.
        number: The trial's number in it.
        cause: Why it was interrupted.
        has_checkpoint: Whether it left a checkpoint, from which the next attempt continues.
            Otherwise, it continues from the checkpoint that this attempt itself continued from.
    """
    trials = study.get_trials(deepcopy=False)
    frozen = trials[number]
    attrs = {name: frozen.user_attrs[name] for name in _INHERITED if name in frozen.user_attrs}
    attrs[RETRY_OF] = number
    if has_checkpoint:
        attrs[CONTINUES] = number
    if cause is Cause.WORKER:
        attrs[NUM_LOST] = int(attrs.get(NUM_LOST, 0)) + 1
    if cause is Cause.MEMORY:
        attrs[ALONE] = True
    # It may have been interrupted before it had asked for all of its settings.
    given = frozen.system_attrs.get("fixed_params", {})
    params = {**grid_point(study, frozen), **given, **frozen.params}
    # Enqueued first, and only once: after a crash in between, the trial is still RUNNING, and the
    # next start calls this function again.
    if not any(trial.user_attrs.get(RETRY_OF) == number for trial in trials):
        if params:
            study.enqueue_trial(params, user_attrs=attrs)
        else:  # nothing sampled; a grid gives points only without settings
            study.add_trial(create_trial(state=TrialState.WAITING, user_attrs=attrs))
    Trial(study, frozen._trial_id).set_user_attr(INTERRUPTED, cause.value)
    study.tell(number, state=TrialState.FAIL)


def epochs_reached(study: optuna.Study, number: int) -> int:
    """Return the last epoch that a trial or an earlier attempt of it has reported; 0 before any."""
    trials = study.get_trials(deepcopy=False)
    attempt = trials[number]
    reached = last_epoch(attempt)
    while 0 <= (earlier := int(attempt.user_attrs.get(RETRY_OF, -1))) < attempt.number:
        attempt = trials[earlier]
        reached = max(reached, last_epoch(attempt))
    return reached


def last_epoch(trial: FrozenTrial) -> int:
    """Return the last epoch that a trial has reported by itself; 0 before any."""
    return max(trial.last_step or 0, int(trial.user_attrs.get(LAST_EPOCH, 0)))


def epochs_beyond(study: optuna.Study, trial: FrozenTrial) -> int:
    """Return how many epochs earlier attempts of a trial reached beyond the trial's own last epoch.

    It is above 0 while the trial waits, and if it failed or was stopped sooner than they were
    interrupted. `search.max_epochs` counts these epochs as well.
    """
    if RETRY_OF not in trial.user_attrs:
        return 0
    reached = epochs_reached(study, trial.number)
    return max(0, reached - int(trial.user_attrs.get("epoch", 0)))


def was_interrupted(trial: FrozenTrial) -> bool:
    """Return whether a trial was interrupted and does not count."""
    return bool(trial.user_attrs.get(INTERRUPTED))
