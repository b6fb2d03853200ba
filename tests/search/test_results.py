"""When a finished search gets no curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from ladder_play import Assignment, experiment, ladder, play_all
from optuna.trial import TrialState

from krscale.errors import UserError
from krscale.search.results import _refuse_if_none_finished, collect


def test_a_search_of_which_every_trial_failed_is_refused_by_each_start(tmp_path: Path) -> None:
    """Fails if only the start that ran the last trial raises the error.

    A later start once found nothing left to run and showed a table without accuracies.
    """
    settings = {"search.methods": ["plain"]}
    found = ladder(tmp_path, experiment(**settings))
    errors = iter(["the first cause", *["another"] * 9])
    while isinstance(upcoming := found.next(), Assignment):
        found.finish(upcoming, TrialState.FAIL, {}, next(errors))
    again = ladder(tmp_path, experiment(**settings))
    assert again.complete
    with pytest.raises(UserError, match=r"no trial finished.*\nthe first cause\nOnce its cause"):
        collect(again, cast(Any, None))


def test_one_trial_that_ended_is_enough_for_a_curve(tmp_path: Path) -> None:
    settings = {"search.methods": ["plain"], "search.num_final_seeds": 1}
    found = ladder(tmp_path, experiment(**settings))
    first = found.next()
    assert isinstance(first, Assignment)
    found.finish(first, TrialState.FAIL, {}, "out of luck")
    play_all(found)
    _refuse_if_none_finished(found)
