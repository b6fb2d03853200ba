"""How trials that end in Tune end in the ladder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from krscale.config import load
from krscale.errors import UserError
from krscale.search.on_ray.run import _refuse_failures
from krscale.search.on_ray.searcher import LadderSearcher, Running
from krscale.search.on_ray.trial_error import TrialError


class FakeLadder:
    """Records how trials ended."""

    def __init__(self, *settings: str) -> None:
        self.experiment = load(None, ["train.num_epochs=4", "search.grace_epochs=1", *settings])
        self.config = self.experiment.search
        self.ended: list[tuple[TrialState, str]] = []
        self.num_failed = 0

    def finish(self, trial: object, state: TrialState, metrics: object, error: str = "") -> None:
        self.ended.append((state, error))
        self.num_failed += state is TrialState.FAIL


@pytest.mark.parametrize(
    ("epochs", "pruned", "state", "error"),
    [
        (4, False, TrialState.COMPLETE, ""),
        (2, True, TrialState.PRUNED, ""),
        (1, False, TrialState.FAIL, "it ended after 1 of 4 epochs"),
        (0, False, TrialState.FAIL, "it ended after 0 of 4 epochs"),
    ],
)
def test_a_trial_that_tune_says_has_ended_is_waited_for_no_longer(
    epochs: int, pruned: bool, state: TrialState, error: str
) -> None:
    ladder = FakeLadder()
    searcher = LadderSearcher(cast(Any, ladder), (), cast(Any, None))
    metrics = {"epoch": float(epochs)} if epochs else {}
    searcher.trials["x"] = Running(cast(Any, SimpleNamespace(name="x")), metrics, pruned=pruned)
    searcher.on_trial_complete("x", {})
    assert ladder.ended == [(state, error)]
    assert searcher.trials == {}
    assert searcher.first_error == error


def test_the_end_of_a_trial_that_was_withdrawn_is_no_news() -> None:
    ladder = FakeLadder()
    LadderSearcher(cast(Any, ladder), (), cast(Any, None)).on_trial_complete("x")
    assert ladder.ended == []


def test_a_search_gives_up_at_as_many_failures_as_it_allows() -> None:
    ladder = FakeLadder("search.max_failures=2")
    searcher = LadderSearcher(cast(Any, ladder), (), cast(Any, None))
    for error in ("first", "second"):
        assert not searcher.gave_up
        searcher.trials["x"] = Running(cast(Any, SimpleNamespace(name="x")), {})
        searcher.errors["x"] = TrialError(error, None)
        searcher.on_trial_complete("x", error=True)
    assert searcher.gave_up
    assert searcher.suggest("y") == Searcher.FINISHED
    with pytest.raises(UserError) as ended:
        _refuse_failures(searcher)
    assert str(ended.value) == (
        "search: 2 trials failed (search.max_failures = 2). The first error was:\nfirst"
    )
    assert [state for state, _ in ladder.ended] == [TrialState.FAIL] * 2
