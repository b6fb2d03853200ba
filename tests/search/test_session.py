"""A search from the command line to its curve, trained in this process instead of on Ray."""

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import finished_search
import pytest
from ladder_play import Assignment, Ladder, Next
from optuna.trial import TrialState
from running import in_process, overrides

from krscale.errors import UserError
from krscale.parallel import Workers
from krscale.report import read_curve
from krscale.runs.folder import student_path
from krscale.search import session
from krscale.search.check import CheckedSearch
from krscale.search.insight import find_insight
from krscale.search.studies.objectives import front
from krscale.search.studies.trial_spec import FinalKey, TuningKey
from krscale.setup.build import Assets, build_training, trial_experiment
from krscale.setup.prepare import Prepared
from krscale.training.checkpoint import save_weights

run = in_process("tune")
SPACE = """
[common]
"train.learning_rate" = { type = "float", low = 0.03, high = 0.5, log = true }
"student.options.num_blocks" = { type = "int", low = 1, high = 3 }
"""
SETTINGS = (
    "name=shapes",
    "teacher.width=8",
    "teacher.num_epochs=1",
    "views.num_views=1",
    "train.num_epochs=1",
    "ladder.capacities=['1/4']",
    "search.methods=['plain']",
    "search.objectives=['val/accuracy', 'latency_ms']",
    "search.early_stopping=none",
    "search.trials_per_size=2",
    "search.num_final_seeds=1",
    "search.gpus_per_trial=0",
)


class Records:
    """A tracker that keeps what the search records."""

    params: ClassVar[dict[str, Any]]
    last: ClassVar["Records"]

    def __init__(self, *_: Any, **__: Any) -> None:
        self.tags: dict[str, dict[str, str]] = {}
        self.points: dict[str, set[tuple[str, int, float]]] = {}
        Records.last = self

    def start_run(self, key: str, *, tags: Any, params: Any, **_: Any) -> None:
        self.tags[key] = dict(tags)
        assert self.params.setdefault(key, params) == params, "MLflow refuses params that change"

    def set_tags(self, key: str, tags: dict[str, str]) -> None:
        self.tags.setdefault(key, {}).update(tags)

    def log_metrics(self, key: str, metrics: dict[str, float], *, step: int, **_: Any) -> None:
        points = self.points.setdefault(key, set())
        points |= {(name, step, value) for name, value in metrics.items()}

    def newest(self, key: str) -> str:
        return key

    def recorded_points(self, key: str) -> set[tuple[str, int, float]]:
        return set(self.points.get(key, ()))

    def how_to_open(self) -> tuple[str, str]:
        return "", ""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@pytest.fixture
def ladders(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Ladder, list[Assignment]]]:
    """The ladder of each search that is run, and the trials that it ran."""
    shutil.copytree(searched / "cache", tmp_path / "cache")  # a teacher and a store take seconds
    found: list[tuple[Ladder, list[Assignment]]] = []

    def run_here(ladder: Ladder, prepared: Prepared, *_: Any) -> None:
        """Do what Ray's workers do, one trial after the other."""
        assets, ran = Assets.open(prepared), []
        while isinstance(upcoming := ladder.next(), Assignment):
            ran.append(upcoming)
            key, config = upcoming.key, ladder.experiment
            values = dict(upcoming.values)
            experiment = trial_experiment(config, key.method, values, upcoming.seed)
            training = build_training(experiment, assets, upcoming.size.width, Workers.alone())
            metrics = training.run_epoch()
            assert not ladder.report(upcoming, metrics)
            if isinstance(key, FinalKey):
                path = student_path(config.run_path, key.method, key.capacity, upcoming.seed)
                save_weights(path, training.student)
            ladder.finish(upcoming, TrialState.COMPLETE, metrics)
        assert upcoming is Next.DONE
        found.append((ladder, ran))

    finished_search.save_time(monkeypatch)
    monkeypatch.setattr(session, "connect", lambda cluster: None)
    monkeypatch.setattr(session, "check_arrival", lambda models, builders: None)
    monkeypatch.setattr(session, "num_slots", lambda *_: 1)
    monkeypatch.setattr(session, "write_on_workers", None)
    monkeypatch.setattr(session, "require_possible", lambda *_: None)
    monkeypatch.setattr(session, "run_search", run_here)
    monkeypatch.setattr(session, "Tracker", Records)
    monkeypatch.setattr(Records, "params", {}, raising=False)
    return found


def test_a_search_with_two_objectives_is_extended(
    ladders: list[tuple[Ladder, list[Assignment]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "space.toml").write_text(SPACE)
    settings = overrides(
        *SETTINGS, f"storage_path={tmp_path}", f"search.space={tmp_path / 'space.toml'}"
    )
    notes = property(lambda checked: ["what to know of the space"])
    monkeypatch.setattr(CheckedSearch, "notes", notes)
    assert run([*settings, "--json"]) == 0
    said = capsys.readouterr()
    first = json.loads(said.out)
    assert said.err.count("what to know of the space") == 1
    assert run([*settings, "--quiet", "--set", "search.trials_per_size=+3"]) == 0
    assert "The front of every study" in capsys.readouterr().out

    (before, ran_before), (after, ran) = ladders
    key, final = TuningKey("plain", "1/4"), FinalKey("plain", "1/4")
    assert [a.key for a in ran_before] == [key, key, final]
    old, new = before.winner("plain", "1/4"), after.winner("plain", "1/4")
    assert old is not None
    assert new is not None
    # Three new trials, and a final only if another trial has won.
    assert [a.key for a in ran] == [key] * 3 + [final] * (old.params != new.params)
    assert [a.number for a in ran[:3]] == [2, 3, 4]
    assert [t.params for t in after.finals[FinalKey("plain", "1/4")].complete()] == [new.params]

    curve = read_curve(tmp_path / "shapes")
    assert curve.budgets is not None
    assert (first["budgets"]["trials_per_size"], curve.budgets.trials_per_size) == (2, 5)
    (size,) = curve.sizes
    result = size.methods["plain"]
    assert (result.num_trials, result.ended_by, result.best) == (5, "trials_per_size", new.params)
    chosen = front(after.optuna_studies[key])
    assert [found.number for found in result.front] == [trial.number for trial in chosen]
    assert list(result.front[0].objectives.values()) == new.values
    assert size.size_of("plain").latency_ms == new.values[1], "measured once, wherever it is told"
    assert find_insight(tmp_path / "shapes").studies[0].best == new.params

    records = Records.last
    trials = {after.trial_name(key, n) for n in range(5)}
    shown = {name for name in trials if records.tags[name].get("krscale.front") == "true"}
    assert shown == {after.trial_name(key, trial.number) for trial in chosen}
    assert records.tags["plain"]["krscale.ended_by"] == "trials_per_size"
    assert records.tags["plain"]["krscale.trials_per_size"] == "5"
    for trial in chosen:
        accuracy, latency = trial.values
        point = ("front_by_latency/val_accuracy", round(1000 * latency), accuracy)
        assert point in records.points["plain"]
    for assignment in ran:
        size = ("size/latency_ms", 0, assignment.latency_ms)
        assert size in records.points[assignment.name]


@pytest.mark.parametrize("where", ["connect", "require_possible"])
def test_a_search_that_cannot_go_on_keeps_the_curve_that_it_has(
    where: str, searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`report` and `pick` said that no search had finished, once its extension found no cluster."""
    storage = Path(shutil.copytree(searched, tmp_path / "storage"))
    before = read_curve(storage / "small")
    given = overrides(
        *finished_search.SETTINGS, f"storage_path={storage}", "tracking.enabled=false",
        "search.trials_per_size=3",
    )  # fmt: skip

    def refuse(*_: object) -> None:
        raise UserError("no such cluster")

    with finished_search.without_ray():
        monkeypatch.setattr(session, where, refuse)
        assert run([*given, "--quiet"]) == 2
    assert read_curve(storage / "small") == before


def test_a_grid_smaller_than_its_trials_is_said_once_and_before_they_run(
    ladders: list[tuple[Ladder, list[Assignment]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "space.toml").write_text(
        """
        [plain]
        "train.momentum" = { type = "categorical", choices = [0.8, 0.9] }
        [label_smoothing]
        "distill.label_smoothing" = { type = "float", low = 0.1, high = 0.3, step = 0.1 }
        """
    )
    settings = overrides(
        *SETTINGS, f"storage_path={tmp_path}", f"search.space={tmp_path / 'space.toml'}",
        "search.objectives=['val/accuracy']", "search.sampler=grid", "search.trials_per_size=3",
        "search.methods=['plain', 'label_smoothing']",
    )  # fmt: skip
    assert run([*settings, "--dry-run"]) == 0
    assert "1 studies x 2 trials (plain) + 1 studies x 3 trials (label_smoothing) = 5 trials" in (
        capsys.readouterr().out
    )
    assert run(settings) == 0
    error = capsys.readouterr().err
    note = (
        "search.sampler = 'grid': the grid has 2 points for plain; a study tries each point once "
        "and ends before its search.trials_per_size = 3"
    )
    assert error.count(note) == error.count("grid") // note.count("grid") == 1
    assert "7/7 trials" in error, "two and three, and a final each"
    curve = read_curve(tmp_path / "shapes")
    ended_by = {name: found.ended_by for name, found in curve.sizes[0].methods.items()}
    assert ended_by == {"plain": "grid", "label_smoothing": "trials_per_size"}
    assert run(settings) == 0
    assert "the grid has" not in capsys.readouterr().err, "nothing is left to run"
