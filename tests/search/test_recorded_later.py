"""What MLflow gets of a search that ended, or went on, while nothing was recorded, or is extended.

The journal has the trials that were not recorded.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from finished_search import search, train_here
from optuna.trial import TrialState

from krscale.report import read_curve
from krscale.runs import origin
from krscale.search import results
from krscale.search.studies.journal import read_journal
from krscale.search.studies.ladder import Ladder
from krscale.search.studies.opening import present_studies
from krscale.search.studies.trial_spec import Assignment, FinalKey

COMMIT = "krscale.commit"
URI = "tracking.uri=http://127.0.0.1:9"  # no server answers: records stay in the spool


def close_at_once(patch: pytest.MonkeyPatch) -> None:
    from krscale.tracking import Tracker

    close = Tracker.close
    patch.setattr(Tracker, "close", lambda self, timeout=1.0: close(self, 1.0))


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    close_at_once(monkeypatch)


@pytest.fixture
def storage(searched: Path, tmp_path: Path) -> Path:
    """A storage with a finished search that was not recorded."""
    assert not (searched / "small" / "tracking").exists()
    return Path(shutil.copytree(searched, tmp_path / "storage"))


def events(storage: Path) -> list[dict]:
    lines = (storage / "small" / "tracking" / "spool.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def of_run(found: list[dict], key: str) -> dict:
    """Return what MLflow would have of a run."""
    mine = [event for event in found if event["key"] == key]
    starts = [event for event in mine if event["op"] == "start"]
    metrics: dict[tuple[str, int], float] = {}
    for event in mine:
        if event["op"] == "log":
            step = event["content"]["step"]
            metrics |= {(name, step): v for name, v in event["content"]["metrics"].items()}
    ends = [event for event in mine if event["op"] == "end"]
    return {
        "params": starts[0]["content"]["params"], "parent": starts[0]["content"]["parent"],
        "start": starts[0]["time_ms"], "metrics": metrics, "num_starts": len(starts),
        "state": ends[-1]["content"]["status"], "end": ends[-1]["time_ms"],
    }  # fmt: skip


def check_whole(storage: Path) -> None:
    """Check that every trial of the journal is in the record, with its own numbers."""
    found = events(storage)
    number = 0
    for key, study in present_studies(read_journal(storage / "small" / "journal.log")).items():
        for trial in study.get_trials():
            run = of_run(found, key.trial_name(trial.number))
            assert run["parent"] == key.method
            for name, value in trial.params.items():
                assert run["params"][name] == str(value)
            assert run["state"] == trial.state.name
            for epoch, accuracy in trial.intermediate_values.items():
                assert run["metrics"]["val/accuracy", epoch] == accuracy
            assert run["metrics"]["val/loss", 2] == trial.user_attrs["val/loss"]
            assert trial.datetime_start is not None
            assert run["start"] <= 1000 * trial.datetime_complete.timestamp()
            assert ("test/accuracy", 2) in run["metrics"] or not isinstance(key, FinalKey)
            number += 1
    assert number == 6
    for method in ("plain", "kr"):
        assert of_run(found, method)["state"] == "COMPLETE"


def test_a_finished_search_that_was_not_recorded(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search(storage, URI)
    err = capsys.readouterr().err
    assert "6 trials ended while nothing was recorded of them" in err
    assert "The other metrics of their epochs were not kept" in err
    assert "http://127.0.0.1:9" in err
    assert "cannot be used" in err
    assert any("curve/test_accuracy" in e["content"].get("metrics", {}) for e in events(storage))
    check_whole(storage)
    size = len(events(storage))
    search(storage, URI)
    assert "nothing was recorded" not in capsys.readouterr().err
    again = events(storage)[size:]
    assert {event["key"] for event in again if event["op"] == "start"} == {"plain", "kr"}


@pytest.fixture(scope="module")
def recorded(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same storage after a start that recorded the trials of its journal; tests copy it."""
    storage = Path(shutil.copytree(searched, tmp_path_factory.mktemp("recorded") / "storage"))
    with pytest.MonkeyPatch.context() as patch:
        close_at_once(patch)
        search(storage, URI)
    return storage


@pytest.mark.parametrize("what", ["folder", "spool", "emptied", "half"])
def test_a_record_that_is_lost(
    recorded: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Path(shutil.copytree(recorded, tmp_path / "storage"))
    folder = storage / "small" / "tracking"
    spool = folder / "spool.jsonl"
    if what == "folder":
        shutil.rmtree(folder)
    elif what == "spool":
        spool.unlink()
    elif what == "emptied":
        spool.write_bytes(b"")
    else:
        spool.write_bytes(spool.read_bytes()[: spool.stat().st_size // 2])
    capsys.readouterr()
    search(storage, URI)
    assert "trials ended while nothing was recorded of them" in capsys.readouterr().err
    check_whole(storage)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("objectives", [["val/accuracy"], ["val/accuracy", "val/loss"]])
def test_a_search_that_was_interrupted_and_went_on_unrecorded(
    storage: Path, objectives: list[str]
) -> None:
    """Its first trial was recorded and did not end; others ran while nothing was recorded."""
    shutil.rmtree(storage / "small")

    def stop(ladder: Ladder, *_: object) -> None:
        upcoming = ladder.next()
        assert isinstance(upcoming, Assignment)
        ladder.report(upcoming, {"val/accuracy": 0.25, "val/loss": 1.0, "epoch": 1.0})
        raise StoppedError

    small = (
        *("search.methods=['plain']", "search.trials_per_size=1"),
        *(f"search.objectives={objectives}", "search.early_stopping=none"),
    )
    with pytest.raises(StoppedError):
        search(storage, *small, URI, train=stop)
    search(storage, *small, "tracking.enabled=false", train=train_here)
    search(storage, *small, URI)
    found = events(storage)
    states = [
        of_run(found, key.trial_name(trial.number))["state"]
        for key, study in present_studies(read_journal(storage / "small/journal.log")).items()
        for trial in study.get_trials()
    ]
    assert sorted(states) == ["COMPLETE"] * 2 + ["FAIL"]
    interrupted = [e for e in found if "krscale.error" in e["content"].get("tags", {})]
    assert [e["content"]["tags"]["krscale.error"] for e in interrupted] == [
        "interrupted: the search was interrupted"
    ]
    assert interrupted[0]["content"]["tags"]["krscale.budget"] == "1 of 2 epochs"
    assert TrialState.FAIL.name in states


def curve_points(found: list[dict], run: str) -> set[tuple[str, int, float]]:
    """Return the points of a run's curves, of which MLflow never removes one."""
    return {
        (name, event["content"]["step"], value)
        for event in found
        if event["key"] == run and event["op"] == "log"
        for name, value in event["content"]["metrics"].items()
        if name.startswith("curve")
    }


def wanted_points(storage: Path, method: str) -> set[tuple[str, int, float]]:
    (size,) = json.loads((storage / "small" / "curve.json").read_text())["sizes"]
    steps = {
        "curve": size["num_parameters"], "curve_by_flops": size["flops"],
        "curve_by_latency": round(1000 * size["latency_ms"]),
    }  # fmt: skip
    return {
        (f"{axis}/{split}_accuracy", step, size["methods"][method][f"{split}_accuracy"])
        for axis, step in steps.items()
        for split in ("val", "test")
    }


def last_tags(found: list[dict], name: str) -> dict[str, str]:
    """Return the last value of a tag, by run."""
    tags = ((event["key"], event["content"].get("tags", {})) for event in found)
    return {key: given[name] for key, given in tags if name in given}


def test_a_start_that_trains_nothing_keeps_the_commit_of_the_curve(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page, exports and MLflow named the commit of whoever last repeated the command."""
    storage = Path(shutil.copytree(recorded, tmp_path / "storage"))
    commit, tags = read_curve(storage / "small").commit, last_tags(events(storage), COMMIT)
    assert tags["kr"] == commit.partition("-")[0]
    later = "f" * 40
    monkeypatch.setattr(origin, "git_commit", lambda: later)
    monkeypatch.setattr(results, "git_commit", lambda: later)
    search(storage, URI)
    assert read_curve(storage / "small").commit == commit
    assert last_tags(events(storage), COMMIT) == tags
    search(storage, URI, "search.num_final_seeds=2")
    assert read_curve(storage / "small").commit == later
    tags = last_tags(events(storage), COMMIT)
    assert tags.get("kr:2", tags["kr"]) == later


def test_a_curve_that_an_extended_search_has_changed_has_no_former_points(
    recorded: Path, tmp_path: Path
) -> None:
    """With more seeds the means differ; the points of the former curve stayed beside them."""
    storage = Path(shutil.copytree(recorded, tmp_path / "storage"))
    before = {method: wanted_points(storage, method) for method in ("plain", "kr")}
    assert curve_points(events(storage), "kr") == before["kr"]
    extended = ("search.trials_per_size=3", "search.num_final_seeds=3", URI)
    search(storage, *extended)
    found = events(storage)
    changed = [method for method in before if wanted_points(storage, method) != before[method]]
    assert changed, "else this test shows nothing"
    runs = {method: f"{method}:2" if method in changed else method for method in before}
    for method, run in runs.items():
        assert curve_points(found, run) == wanted_points(storage, method)
        assert of_run(found, run)["state"] == of_run(found, method)["state"] == "COMPLETE"
        files = [e for e in found if e["op"] == "artifact" and e["key"] == run]
        assert "curve.json" in {Path(e["content"]["path"]).name for e in files}
    kinds, budgets = last_tags(found, "krscale.kind"), last_tags(found, "krscale.trials_per_size")
    assert all(kinds[method] == "former search" for method in changed)
    assert all(kinds[run] == "search" for run in runs.values())
    assert all(budgets[method] == "2" for method in changed), "the origin of the curve it keeps"
    assert all(budgets[run] == "3" for run in runs.values())
    search(storage, *extended)
    again = events(storage)[len(found) :]
    assert {event["key"] for event in again if event["op"] == "start"} == set(runs.values())
