"""Runs begun before a loss was changed never silently continue with another loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from krscale.config import Experiment, load
from krscale.config.older import (
    FORMER_OF_KR,
    FORMER_WEIGHT,
    uses_mended_method,
    with_former_defaults,
)
from krscale.errors import UserError
from krscale.files import write_json
from krscale.runs.experiment_file import read_experiment
from krscale.runs.folder import run_folder

SINCE = ("at_reduction", "at_mean_weight")
"""The settings that runs of commit 3afaaac do not have."""


def experiment(storage: Path, *methods: str, **changes: object) -> Experiment:
    sets = [f"{key.replace('__', '.')}={value!r}" for key, value in changes.items()]
    storage_path = f"storage_path={str(storage)!r}"
    return load(None, [storage_path, "name=old", f"search.methods={list(methods)}", *sets])


def begin_as_before(config: Experiment, **distill: object) -> None:
    """Leave the run folder that the former version would have left."""
    with run_folder(config, {}) as folder:
        path = folder / "experiment.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        for name in SINCE:
            del content["experiment"]["distill"][name]
        content["experiment"]["distill"] |= distill
        write_json(path, content)
        (folder / "journal.log").touch()  # its trials have begun


def go_on(config: Experiment) -> dict[str, Any]:
    with run_folder(config, {}) as folder:
        return json.loads((folder / "experiment.json").read_text(encoding="utf-8"))["experiment"]


def test_attention_transfer_goes_on_with_the_sum_or_not_at_all(tmp_path: Path) -> None:
    begin_as_before(experiment(tmp_path, "kd", "at"))
    with pytest.raises(UserError) as caught:
        go_on(experiment(tmp_path, "kd", "at"))
    error = str(caught.value)
    assert "distill.at_reduction was 'sum', is now 'mean'" in error
    assert "--set distill.at_reduction=sum goes on as it was begun" in error
    kept = go_on(experiment(tmp_path, "kd", "at", distill__at_reduction="sum"))
    assert (kept["distill"]["at_reduction"], kept["distill"]["at_weight"]) == ("sum", 10.0)
    go_on(experiment(tmp_path, "kd", "at", distill__at_reduction="sum"))


def test_a_weight_that_was_set_is_the_sums(tmp_path: Path) -> None:
    begin_as_before(experiment(tmp_path, "at"), at_weight=37.0)
    summed = {"distill__at_reduction": "sum"}
    with pytest.raises(UserError, match=r"distill\.at_weight was 37\.0, is now 10\.0"):
        go_on(experiment(tmp_path, "at", **summed))
    go_on(experiment(tmp_path, "at", **summed, distill__at_weight=37.0))


def test_reading_an_older_run_gives_the_loss_it_had(tmp_path: Path) -> None:
    """Picked students that are trained again use the loss with which they were chosen."""
    config = experiment(tmp_path, "plain", "at")
    begin_as_before(config, at_weight=37.0)
    read = read_experiment(config.run_path).distill
    assert (read.at_reduction, read.at_weight) == ("sum", 37.0)


@pytest.mark.parametrize("distill", [{}, {"at_weight": 10.0}, {"method": "at"}])
def test_only_runs_with_attention_transfer_are_refused(tmp_path: Path, distill: Any) -> None:
    config = experiment(tmp_path, "plain", "kr+dkd")
    uses = distill.get("method") == "at"
    begin_as_before(config, **distill)
    if uses:  # a run of `krscale distill` in a folder of the same name
        config = experiment(tmp_path, "plain", "kr+dkd", distill__method="at")
        with pytest.raises(UserError, match="at_reduction"):
            go_on(config)
    else:
        assert go_on(config)["distill"] == config.model_dump(mode="json")["distill"]
        assert read_experiment(config.run_path) == config, "and has the same fingerprint"


@pytest.mark.parametrize("method", ["logit_standardisation", "kr+kd+logit_standardisation"])
def test_trials_of_a_mended_loss_are_not_mixed_with_new_ones(tmp_path: Path, method: str) -> None:
    config = experiment(tmp_path, "plain", method)
    begin_as_before(config)
    with pytest.raises(UserError) as caught:
        go_on(config)
    error = str(caught.value)
    assert "was begun by another version of krscale (commit " in error
    assert "'logit_standardisation', one of its methods, computed another loss then" in error
    assert "--set name=" in error
    assert read_experiment(config.run_path).search.methods == ("plain", method)


def test_what_is_new_is_left_alone(tmp_path: Path) -> None:
    config = experiment(tmp_path, "at", "logit_standardisation")
    go_on(config)
    go_on(config)
    stored = config.model_dump(mode="json")
    assert with_former_defaults(stored) == stored
    assert not uses_mended_method(stored)


def begin_with_first_formulation(config: Experiment) -> None:
    """Leave the run folder that a version without the second formulation of KR would have left."""
    with run_folder(config, {}) as folder:
        path = folder / "experiment.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        for name in FORMER_OF_KR:
            del content["experiment"]["distill"][name]
        content["experiment"]["distill"]["kr_weight"] = FORMER_WEIGHT
        write_json(path, content)
        (folder / "journal.log").touch()  # its trials have begun


@pytest.mark.parametrize("method", ["kr", "kr+dkd"])
def test_kr_goes_on_in_its_first_formulation_or_not_at_all(tmp_path: Path, method: str) -> None:
    config = experiment(tmp_path, "plain", method)
    begin_with_first_formulation(config)
    options = r"--set distill\.probe_grid=1 --set distill\.kr_weight=2\.0 goes on as it was begun"
    with pytest.raises(UserError, match=options):
        go_on(config)
    former = {**FORMER_OF_KR, "kr_weight": FORMER_WEIGHT}
    settings = {f"distill__{name}": value for name, value in former.items()}
    first = experiment(tmp_path, "plain", method, **settings)
    assert go_on(first)["distill"] == first.model_dump(mode="json")["distill"]
    assert read_experiment(first.run_path) == first


def test_runs_without_kr_have_todays_defaults_and_go_on(tmp_path: Path) -> None:
    config = experiment(tmp_path, "plain", "kd", distill__method="kd")
    begin_with_first_formulation(config)
    assert go_on(config)["distill"] == config.model_dump(mode="json")["distill"]


def test_fingerprints_of_the_first_formulation_stay() -> None:
    """The values are those of commit 256c94d."""
    first = [f"distill.{name}={value}" for name, value in FORMER_OF_KR.items()]
    first.append(f"distill.kr_weight={FORMER_WEIGHT}")
    assert load(None, first).fingerprint() == "8bf8a494dc9634ac"
    assert load(None, []).fingerprint() != "8bf8a494dc9634ac"
    without = ["search.methods=['plain','kd']", "distill.method=kd"]
    assert load(None, without).fingerprint() == "92e00ac4fb87d624"
    assert load(None, [*without, *first]).fingerprint() == "92e00ac4fb87d624"
    assert load(None, [*without, "distill.kr_weight=3"]).fingerprint() != "92e00ac4fb87d624"


@pytest.mark.parametrize(
    "damaged", [{}, {"distill": 3}, {"distill": {}}, {"distill": {}, "search": {"methods": []}}]
)
def test_what_lacks_sections_is_left_to_the_config_to_refuse(damaged: Any) -> None:
    with_former_defaults(damaged)
    uses_mended_method(damaged)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "experiment.json").write_text('{"experiment": [1]}')
    with pytest.raises(UserError, match=r"experiment\.json"):
        read_experiment(tmp_path)
