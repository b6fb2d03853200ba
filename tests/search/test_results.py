"""When a finished search gets no curve, and the size of a winner in one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ladder_play import Assignment, experiment, ladder, play_all
from optuna.trial import TrialState

from krscale.errors import UserError
from krscale.report import Size
from krscale.search.results import _own_size, _refuse_if_none_finished, collect
from krscale.setup.sizes import StudentSize


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


def test_a_winner_that_differs_in_latency_alone_has_a_size_of_its_own() -> None:
    size = StudentSize("1/4", width=3, num_parameters=1_000, flops=20_000)
    resolver = SimpleNamespace(
        size=lambda capacity, values: size,
        latency_ms=lambda capacity, values: 2.0 if values else 1.0,
    )
    ladder = cast(Any, SimpleNamespace(size_resolver=resolver))
    slower = Size(width=3, num_parameters=1_000, flops=20_000, latency_ms=2.0)
    assert _own_size(ladder, size, {"student.options.activation": "gelu"}) == slower
    assert _own_size(ladder, size, {}) is None
