"""What a search refuses once it sees the cluster."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from optuna.distributions import CategoricalDistribution

from krscale.config import load
from krscale.errors import UserError
from krscale.search.on_ray import run
from krscale.search.space.space import SearchSpace


@pytest.mark.parametrize("where", ["the experiment", "the space"])
def test_settings_of_gpus_are_refused_once_where_the_cluster_has_none(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Fails if every trial has to find out by itself."""
    experiment = load(None, ["train.channels_last=true"] if where == "the experiment" else [])
    searched = {"train.channels_last": CategoricalDistribution((False, True))}
    space = SearchSpace("", {"kd": searched if where == "the space" else {}})
    ladder = cast(
        Any, SimpleNamespace(experiment=experiment, config=experiment.search, space=space)
    )
    monkeypatch.setattr(run, "require_workers", lambda *_: None)
    monkeypatch.setattr(run, "has_gpus", lambda _: False)
    with pytest.raises(UserError, match=r"train.channels_last: .*the cluster has no GPU"):
        run.run_search(ladder, cast(Any, None), {"CPU": 1.0})
