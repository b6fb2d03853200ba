"""What a search refuses once it sees the cluster."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from krscale.config import load
from krscale.errors import UserError
from krscale.search.on_ray import run


def test_settings_of_gpus_are_refused_once_where_the_cluster_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fails if every trial has to find out by itself."""
    experiment = load(None, ["train.channels_last=true"])
    ladder = cast(Any, SimpleNamespace(experiment=experiment, config=experiment.search))
    monkeypatch.setattr(run, "require_workers", lambda *_: None)
    monkeypatch.setattr(run, "has_gpus", lambda _: False)
    with pytest.raises(UserError, match=r"train.channels_last: .*the cluster has no GPU"):
        run.run_search(ladder, cast(Any, None), {"CPU": 1.0})
