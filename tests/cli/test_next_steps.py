"""The next steps that a search prints at its end: commands that work where it ran."""

from pathlib import Path

import pytest

from krscale.cli.tune import next_steps
from krscale.config import Experiment, load
from krscale.report import Curve

CURVE = Curve.model_construct(pareto=())
SERVED = "mlflow ui --backend-store-uri sqlite:////runs/mlflow.db"
CHARTS = "http://127.0.0.1:5000/#/experiments/1/runs"


def last(experiment: Experiment, command: str, address: str) -> tuple[str, str]:
    return next_steps(CURVE, experiment, (command, address))[-1]


def test_local_runs_are_served_first_and_then_opened_on_their_charts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KRSCALE_STORAGE_PATH", str(tmp_path))
    command, purpose = last(load(), SERVED, CHARTS)
    assert command == f"make ui, or {SERVED}"
    assert purpose.endswith(f": {CHARTS}")
    elsewhere = load(None, [f"storage_path={tmp_path / 'other'}"])
    assert last(elsewhere, SERVED, CHARTS)[0] == SERVED, "make ui would show another database"


def test_a_server_is_only_opened() -> None:
    step = last(
        load(None, ["tracking.uri=http://mlflow:80"]), "", "http://mlflow:80/#/experiments/7"
    )
    assert step == ("http://mlflow:80/#/experiments/7", "all trials, and the curves overlaid")


def test_without_records_there_is_nothing_to_open() -> None:
    steps = next_steps(CURVE, load(None, ["tracking.enabled=false"]), ("", ""))
    assert [command.split()[1] for command, _ in steps] == ["report"]
