"""The key under which a refitted student is kept; the training: see tests/cli/test_pick.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from krscale.config import Experiment, load, with_values
from krscale.runs.refit import _folder_of


def trial(**values: object) -> Experiment:
    dotted = {name.replace("__", "."): value for name, value in values.items()}
    return with_values(load(None, ["name=a", "storage_path=runs"]), dotted, "test")


@pytest.mark.parametrize("method", ["kr", "plain", "kr+kd"])
def test_longer_searches_need_no_other_refit(method: str, tmp_path: Path) -> None:
    first = _folder_of(trial(distill__method=method), tmp_path)
    for change in (
        {"search__trials_per_size": 99},
        {"search__num_final_seeds": 9},
        {"search__methods": ("plain", "kd")},
        {"search__max_wall_seconds": 5.0},
    ):
        assert _folder_of(trial(distill__method=method, **change), tmp_path) == first


@pytest.mark.parametrize(
    "change",
    [
        {"train__seed": 5},
        {"train__learning_rate": 0.2},
        {"distill__sparsity": 0.9},
        {"distill__method": "kd"},
        {"distill__capacity": "1/2"},
        {"data__max_images": 9},
        {"teacher__seed": 9},
    ],
)
def test_other_trainings_are_others(change: dict[str, object], tmp_path: Path) -> None:
    assert _folder_of(trial(**change), tmp_path) != _folder_of(trial(), tmp_path)


def test_what_an_older_krscale_trained_is_found(tmp_path: Path) -> None:
    older = tmp_path / "refit" / trial().fingerprint()
    assert _folder_of(trial(), tmp_path) != older
    older.mkdir(parents=True)
    assert _folder_of(trial(), tmp_path) == older
