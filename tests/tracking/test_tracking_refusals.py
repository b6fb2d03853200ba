"""What a refused request means: the experiment is deleted, gone, unreadable, or active."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException, RestException

from krscale.tracking.address import resolve_address
from krscale.tracking.refusals import Refused, ServerAway
from krscale.tracking.server import Server


class Client:
    """A client of MLflow with given answers: an error code, or a lifecycle stage."""

    def __init__(self, run: str, experiment: str) -> None:
        self._run, self._experiment = run, experiment

    def _answer(self, answer: str) -> Any:
        if answer == answer.lower():
            found = SimpleNamespace(lifecycle_stage=answer)
            return SimpleNamespace(info=found, lifecycle_stage=answer)
        error = {"error_code": answer, "message": f"it is {answer}"}
        raise RestException(error)  # type: ignore[no-untyped-call]

    def log_batch(self, run_id: str, **items: Any) -> None:
        raise MlflowException.invalid_parameter_value("this run takes nothing")

    def get_run(self, run_id: str) -> Any:
        return self._answer(self._run)

    def get_experiment(self, experiment_id: str) -> Any:
        return self._answer(self._experiment)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Server]:
    def serve(run: str = "active", experiment: str = "active") -> Server:
        found = SimpleNamespace(experiment_id="1", creation_time=1, lifecycle_stage="active")
        monkeypatch.setattr(Server, "_open_experiment", lambda *_: found)
        monkeypatch.setattr("mlflow.MlflowClient", lambda uri: Client(run, experiment))
        return Server(resolve_address("http://127.0.0.1:9", tmp_path), "digits")

    return serve


def test_a_refusal_stands_where_the_experiment_is_active(served: Callable[..., Server]) -> None:
    with pytest.raises(Refused, match="this run takes nothing"):
        served().log("a", "params", [("name", "text")])


@pytest.mark.parametrize(
    ("experiment", "said"),
    [
        ("deleted", "its experiment 'digits' is deleted; restore it there"),
        ("RESOURCE_DOES_NOT_EXIST", "its experiment 'digits' is gone"),
        ("INTERNAL_ERROR", "INTERNAL_ERROR: it is INTERNAL_ERROR"),
        ("INVALID_PARAMETER_VALUE", "INVALID_PARAMETER_VALUE: it is INVALID_PARAMETER_VALUE"),
        ("TEMPORARILY_UNAVAILABLE", "TEMPORARILY_UNAVAILABLE: it is TEMPORARILY_UNAVAILABLE"),
    ],
)
def test_mlflow_is_away_where_it_cannot_give_the_experiment(
    experiment: str, said: str, served: Callable[..., Server]
) -> None:
    with pytest.raises(ServerAway) as away:
        served(experiment=experiment).log("a", "params", [("name", "text")])
    assert str(away.value).startswith(said)
    assert ("deleted" in str(away.value)) == (experiment == "deleted")


@pytest.mark.parametrize(
    ("run", "deleted"),
    [
        ("active", False),
        ("deleted", True),
        ("RESOURCE_DOES_NOT_EXIST", True),
        ("INTERNAL_ERROR", False),
    ],
)
def test_which_runs_are_deleted(run: str, deleted: bool, served: Callable[..., Server]) -> None:
    assert served(run).is_deleted("a") is deleted
