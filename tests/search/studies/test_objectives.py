"""Several objectives: the front, its winner, what survives a restart, what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from ladder_play import SIZES, Assignment, experiment, ladder, play, play_all
from optuna.study import StudyDirection
from optuna.trial import TrialState

from krscale.config import load
from krscale.errors import UserError
from krscale.files import write_json
from krscale.runs.folder import run_folder
from krscale.search.studies.objectives import front
from krscale.search.studies.size_resolver import FixedSizeResolver
from krscale.search.studies.trial_spec import FinalKey, TuningKey

TWO = {"search.objectives": ["val/accuracy", "latency_ms"], "search.early_stopping": "none"}
TUNING = [TuningKey("plain", size.capacity) for size in SIZES]


class SizeResolver(FixedSizeResolver):
    """Students that are slower the larger their learning rate; some are too slow to be allowed."""

    def __init__(self, slowest: float = 10.0) -> None:
        super().__init__({size.capacity: size for size in SIZES})
        self.slowest = slowest

    def latency_ms(self, capacity: str, values: Mapping[str, Any]) -> float:
        return 10.0 * values["train.learning_rate"]

    def excess(self, capacity: str, values: Mapping[str, Any]) -> dict[str, float]:
        latency = self.latency_ms(capacity, values)
        return {"slow": latency / self.slowest - 1} if latency > self.slowest else {}


def search(folder: Path, size_resolver: SizeResolver | None = None, **changes: object):
    config = experiment(**{"search.methods": ["plain"], **TWO, **changes})
    return ladder(folder, config, size_resolver=size_resolver or SizeResolver())


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsgaii", "random"])
def test_every_study_ends_with_optunas_own_front_and_its_most_accurate_trial_won(
    tmp_path: Path, sampler: str
) -> None:
    budget = 6 if sampler == "gp" else 14
    found = search(tmp_path, **{"search.sampler": sampler, "search.trials_per_size": budget})
    played = play_all(found)
    for key in TUNING:
        study = found.optuna_studies[key]
        assert study.directions == [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
        assert len(found.counted(key)) == budget
        chosen = front(study)
        assert {t.number for t in chosen} == {t.number for t in study.best_trials}
        accuracies = [t.values[0] for t in chosen]
        assert accuracies == sorted(accuracies, reverse=True)
        assert max(t.values[0] for t in study.trials) == accuracies[0]
        winner = found.winner(key.method, key.capacity)
        assert winner is not None
        assert winner.number == chosen[0].number
        finals = [a for a in played if a.key == FinalKey(key.method, key.capacity)]
        assert [dict(a.values) for a in finals] == [winner.params] * 2
        for trial in found.counted(key):
            assert trial.values[1] == 10.0 * trial.params["train.learning_rate"]


def test_among_equally_accurate_trials_the_one_on_the_front_wins(tmp_path: Path) -> None:
    found = search(tmp_path)
    key = TuningKey("plain", "1/4")
    # The first is as accurate and has the smaller loss, but is slower, so it is not on the front.
    for latency, loss in ((3.0, 0.1), (2.0, 0.9)):
        trial = found.optuna_studies[key].ask()
        trial.suggest_float("train.learning_rate", 0.01, 0.5)
        trial.set_user_attr("val/loss", loss)
        found.optuna_studies[key].tell(trial, [0.5, latency])
    winner = found.winner("plain", "1/4")
    assert winner is not None
    assert winner.values == [0.5, 2.0]


def test_a_killed_search_goes_on_and_its_epochs_stay_spent(tmp_path: Path) -> None:
    budget = {"search.trials_per_size": 20, "search.max_epochs": 20}
    before = search(tmp_path, **budget)
    for _ in range(3):
        upcoming = before.next()
        assert isinstance(upcoming, Assignment)
        assert play(before, upcoming) is TrialState.COMPLETE, "nothing is stopped early"
    running = before.next()
    assert isinstance(running, Assignment)
    before.report(running, {"val/accuracy": 0.5, "val/loss": 0.5, "epoch": 1.0})
    del before

    after = search(tmp_path, **budget)
    assert after.budget.num_epochs == 3 * 4 + 1
    played = play_all(after)
    assert after.budget.num_epochs == 20
    again = next(a for a in played if dict(a.values) == dict(running.values))
    assert again.latency_ms == running.latency_ms
    states = [t.state for key in TUNING for t in after.optuna_studies[key].trials]
    assert states.count(TrialState.FAIL) == 1
    assert TrialState.RUNNING not in states


def test_forbidden_students_are_kept_off_the_front(tmp_path: Path) -> None:
    found = search(tmp_path, SizeResolver(slowest=1.5), **{"search.trials_per_size": 12})
    play_all(found)
    for key in TUNING:
        assert len(found.counted(key)) == 12
        assert any("forbidden" in t.user_attrs for t in found.optuna_studies[key].trials)
        assert all(t.values[1] <= 1.5 for t in front(found.optuna_studies[key]))


def test_one_objective_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    config = experiment(**{"search.methods": ["plain"]})
    found = ladder(tmp_path, config)
    play_all(found)
    for study in found.optuna_studies.values():
        assert study.directions == [StudyDirection.MAXIMIZE]
        assert all(len(t.intermediate_values) > 0 for t in study.trials)
    assert config.search.objectives == ("val/accuracy",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["val/accuracy", "latency"], "no objective 'latency'; did you mean 'latency_ms'?"),
        (["latency_ms", "val/accuracy"], "'val/accuracy' comes first"),
        (["val/accuracy", "flops", "flops"], "'flops' is named twice"),
        (["val/accuracy", "flops"], "set search.early_stopping = 'none'"),
        ([], "at least one is needed"),
    ],
)
def test_what_does_not_go_together_is_one_error(settings: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(None, [f"search.objectives={settings}"])
    assert str(caught.value).startswith("--set search.objectives: ")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_sampler_of_one_objective_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'cmaes' improves one objective; 'tpe', 'gp'"):
        experiment(**TWO, **{"search.sampler": "cmaes"})
    # Optuna's sampler has the limit that the error names.
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=optuna.samplers.CmaEsSampler()
    )
    with pytest.raises(ValueError, match="multi-objective"):
        study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})


def test_a_run_of_an_older_krscale_without_objectives_goes_on(tmp_path: Path) -> None:
    config = load(None, [f"storage_path={tmp_path}", "name=old"])
    with run_folder(config, {}) as folder:
        (folder / "journal.log").touch()  # its trials have begun
    path = folder / "experiment.json"
    content = json.loads(path.read_text())
    del content["experiment"]["search"]["objectives"]
    write_json(path, content)
    with run_folder(config, {}):
        pass
    several = load(
        None,
        [
            f"storage_path={tmp_path}",
            "name=old",
            *(f"{key}={value!r}" for key, value in TWO.items()),
        ],
    )
    message = r"search.objectives was \['val/accuracy'\], is now \['val/accuracy', 'latency_ms'\]"
    with pytest.raises(UserError, match=message), run_folder(several, {}):
        pass
