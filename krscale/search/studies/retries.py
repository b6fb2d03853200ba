"""Trials that were cut short by no fault of their own: told FAIL, not counted, run again.

Four things cut a trial short. The search itself died: its trials are run again however often that
happens. A worker or node was lost: again, up to `search.max_retries` times. The memory did not
suffice: again once, alone on a machine. The cluster has become too small for the workers that a
waiting trial was to have: again, with fewer. What a user's code raises, and a loss that is not
finite, would only happen again; those trials are FAIL and count.
"""

from __future__ import annotations

from enum import Enum

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from krscale.search.studies.samplers import grid_point

INTERRUPTED = "interrupted"
"""User attribute of a trial that was cut short; such trials do not count."""
RETRY_OF = "retry_of"
CONTINUES = "continues"
ALONE = "alone"
NUM_LOST = "num_lost"
"""How many workers a trial's earlier attempts have lost."""
SEED = "seed"
_INHERITED = (SEED, CONTINUES, ALONE, NUM_LOST, "transferred_from")


class Cause(Enum):
    """Why a trial was cut short."""

    SEARCH = "the search was interrupted"
    WORKER = "its worker was lost"
    MEMORY = "it ran out of memory"
    ROOM = "it waited for more workers than are left"

    @property
    def text(self) -> str:
        """What listeners are told."""
        return f"{INTERRUPTED}: {self.value}"


def deserves_retry(trial: FrozenTrial | Trial, cause: Cause, max_retries: int) -> bool:
    """Return whether a trial that was cut short is run again, or is FAIL like any other."""
    if cause is Cause.WORKER:
        return int(trial.user_attrs.get(NUM_LOST, 0)) < max_retries
    if cause is Cause.MEMORY:
        return not trial.user_attrs.get(ALONE, False)
    return True


def why_given_up(trial: FrozenTrial | Trial, cause: Cause) -> str:
    """Return why a trial that was cut short is not run again, as the start of a sentence."""
    if cause is Cause.WORKER:
        times = 1 + int(trial.user_attrs.get(NUM_LOST, 0))
        return f"{cause.value} {times} times" if times > 1 else cause.value
    return f"{cause.value}, also when it ran alone" if cause is Cause.MEMORY else cause.value


def run_again(study: optuna.Study, number: int, cause: Cause, *, has_checkpoint: bool) -> None:
    """Tell a RUNNING trial FAIL and enqueue its settings once more.

    Args:
        study: The trial's study.
        number: The trial's number in it.
        cause: Why it was cut short.
        has_checkpoint: Whether it left one; the next attempt goes on from there, or else from the
            one that this attempt itself went on from.
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
    # It may have been cut short before it had asked for all that it was to have.
    given = frozen.system_attrs.get("fixed_params", {})
    params = {**grid_point(study, frozen), **given, **frozen.params}
    # Enqueued first, and only once: a crash in between leaves the trial RUNNING, and the next start
    # comes here again.
    if not any(trial.user_attrs.get(RETRY_OF) == number for trial in trials):
        if params:
            study.enqueue_trial(params, user_attrs=attrs)
        else:  # nothing was decided; with settings, even none, a grid would give it no point
            study.add_trial(create_trial(state=TrialState.WAITING, user_attrs=attrs))
    Trial(study, frozen._trial_id).set_user_attr(INTERRUPTED, cause.value)
    study.tell(number, state=TrialState.FAIL)


def was_interrupted(trial: FrozenTrial) -> bool:
    """Return whether a trial was cut short and does not count."""
    return bool(trial.user_attrs.get(INTERRUPTED))
