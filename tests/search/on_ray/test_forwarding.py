"""The environment that Tune forwards to workers, which Ray logs openly, holds no secret."""

from typing import Any, cast
from unittest.mock import MagicMock

import pytest
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE as BY_TRAIN
from ray.tune.execution import class_cache

from krscale.config import load
from krscale.redaction import may_name_a_secret
from krscale.search.on_ray import forwarding, run

CANARY = "c4n4ry-s3cr3t"


def forwarded(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return what a trial's actor would get if every variable that Tune forwards were set."""
    for name in class_cache.ENV_VARS_TO_PROPAGATE:
        monkeypatch.setenv(name, f"{CANARY}-{name}")
    seen: dict[str, str] = {}

    def remote(runtime_env: dict[str, dict[str, str]]) -> object:
        seen.update(runtime_env["env_vars"])
        return lambda trainable: trainable

    monkeypatch.setattr(class_cache.ray, "remote", remote)
    class_cache._ActorClassCache().get(object)
    return seen


def test_tune_hands_on_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "AWS_SECRET_ACCESS_KEY" in forwarded(monkeypatch), "Ray's own way has changed"
    names = class_cache.ENV_VARS_TO_PROPAGATE
    with forwarding.no_secrets_forwarded():
        seen = forwarded(monkeypatch)
    assert not [name for name in seen if name.startswith("AWS_") or may_name_a_secret(name)]
    assert "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S" in seen, "the rest still goes"
    assert class_cache.ENV_VARS_TO_PROPAGATE is names


def test_train_hands_on_none_by_itself() -> None:
    assert BY_TRAIN
    assert not list(filter(may_name_a_secret, BY_TRAIN))


@pytest.mark.parametrize(
    "name",
    [
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "AWS_ACCESS_KEY_ID",
        "AWS_SESSION_TOKEN",
        "RAY_AUTH_TOKEN",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "hf_token",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert may_name_a_secret(name)


def test_a_search_runs_tune_so(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load(None, [])
    ladder = MagicMock(experiment=experiment, config=experiment.search, num_failed=0)
    seen: set[str] = set()
    tune = MagicMock()
    tune.Tuner.return_value.fit.side_effect = lambda: seen.update(class_cache.ENV_VARS_TO_PROPAGATE)
    monkeypatch.setattr(run, "tune", tune)
    run.run_search(ladder, cast(Any, None), {"CPU": 1.0})
    assert "RAY_TRAIN_V2_ENABLED" in seen
    assert not list(filter(may_name_a_secret, seen))
