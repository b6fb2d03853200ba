"""A search killed after any line of its journal ends like one that was not killed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from ladder_play import Assignment, Ladder, experiment, ladder, play, play_all
from optuna.trial import FrozenTrial

from krscale.config import Experiment
from krscale.search.studies.study import FORBIDDEN, FinalStudy, Study

PLANS = ("tpe", "grid", "fixed")
"""The first is given its first trial, the second assigns a point to each trial, and the third
leaves nothing to decide."""
GRID = """
[kr]
"train.learning_rate" = { type = "categorical", choices = [0.05, 0.1] }
"distill.sparsity" = { type = "categorical", choices = [0.0, 0.3] }
"""
SHARES = 4
"""The number of tests among which the lines are divided."""


@pytest.fixture(scope="module", params=PLANS)
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    settings: dict[str, object] = {
        "search.methods": ["kr"], "search.trials_per_size": 2, "train.num_epochs": 2,
        "search.grace_epochs": 1, "search.sampler": "grid" if request.param == "grid" else "tpe",
    }  # fmt: skip
    if request.param == "fixed":
        settings["search.space"] = "fixed"
    if request.param == "grid":
        space = tmp_path_factory.mktemp("grid") / "space.toml"
        space.write_text(GRID, encoding="utf-8")
        settings["search.space"] = str(space)
    return experiment(**settings)


@pytest.fixture(scope="module")
def lines(config: Experiment, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The journal of a search of two workers."""
    folder = tmp_path_factory.mktemp("whole")
    _run(folder, config)
    return (folder / "journal.log").read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("share", range(SHARES))
def test_a_search_killed_after_any_line_ends_exact(
    share: int, config: Experiment, lines: list[bytes], tmp_path: Path
) -> None:
    assert len(lines) > 60
    faults: list[str] = []
    for number in range(share, len(lines), SHARES):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "journal.log").write_bytes(b"".join(lines[:number]))
        after = ladder(folder, config)
        play_all(after)
        faults += [f"after line {number} of {len(lines)}: {fault}" for fault in _faults(after)]
    assert faults == []


def _faults(found: Ladder) -> Iterator[str]:
    """Yield what is lost, doubled, left running, or has other settings than planned."""
    for key, study in found.studies.items():
        trials = study.optuna.get_trials(deepcopy=False)
        done = [trial for trial in trials if _counts(trial)]
        if len(done) != study.planned(found.config):
            yield f"{key.name}: {len(done)} trials"
        yield from (
            f"{key.name}#{t.number} is {t.state}" for t in trials if not t.state.is_finished()
        )
        yield from (
            f"{key.name}#{t.number} is forbidden" for t in trials if FORBIDDEN in t.user_attrs
        )
        again = Counter(t.user_attrs["retry_of"] for t in trials if "retry_of" in t.user_attrs)
        if again != Counter(t.number for t in trials if not _counts(t)):
            yield f"{key.name}: run again: {dict(again)}"
        yield from _other_settings(study, trials, done)


def _other_settings(
    study: Study, trials: list[FrozenTrial], done: list[FrozenTrial]
) -> Iterator[str]:
    if not isinstance(study, FinalStudy):
        own = trials[0].system_attrs.get("fixed_params", {})  # the experiment's own values
        last = trials[0]
        while not _counts(last):
            last = next(t for t in trials if t.user_attrs.get("retry_of") == last.number)
        if any(last.params[name] != value for name, value in own.items()):
            yield f"{study.key.name}: the first trial is {last.params}, not {own}"
        return
    winner = study.tuning.winner()
    assert winner is not None
    yield from (
        f"{study.key.name}#{t.number} is no winner" for t in done if t.params != winner.params
    )
    seeds = sorted(trial.user_attrs["seed"] for trial in done)
    if len(seeds) != len(set(seeds)):
        yield f"{study.key.name}: seeds {seeds}"


def _counts(trial: FrozenTrial) -> bool:
    return not trial.user_attrs.get("interrupted")


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.drill) for seed in (2, 3))]
)
def test_a_search_killed_several_times_ends_exact(
    seed: int, config: Experiment, tmp_path: Path
) -> None:
    """Each start runs for a while and loses what it wrote after some line."""
    draws = random.Random(seed)
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        kept = 0
        for _ in range(draws.randint(2, 6)):
            _run(folder, config, draws.randint(0, 8))
            lines = (folder / "journal.log").read_bytes().splitlines(keepends=True)
            kept = draws.randint(min(kept, len(lines)), len(lines))
            (folder / "journal.log").write_bytes(b"".join(lines[:kept]))
        after = ladder(folder, config)
        play_all(after)
        assert list(_faults(after)) == [], f"search {number}"


def _run(folder: Path, config: Experiment, num_ended: int = -1) -> None:
    """Run a search with two workers until `num_ended` trials have ended, or to its end."""
    found = ladder(folder, config)
    running: list[Assignment] = []
    while num_ended != 0:
        while len(running) < 2 and isinstance(upcoming := found.next(), Assignment):
            running.append(upcoming)
        if not running:
            return
        play(found, running.pop(0))
        num_ended -= 1
