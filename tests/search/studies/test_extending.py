"""A search that goes on, with more trials or in another space, and when it is refused."""

import json
import subprocess
import sys
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import optuna
import pytest
from ladder_play import Assignment, Ladder, experiment, ladder, play, play_all

from krscale.config import Experiment, load
from krscale.errors import UserError
from krscale.files import write_json
from krscale.runs.experiment_file import SPACE
from krscale.runs.folder import run_folder, student_path
from krscale.search.insight import find_insight
from krscale.search.session import _lost_students, _lost_trials
from krscale.search.space.space import load_space
from krscale.search.studies.extending import load_or_extend, remember_budgets
from krscale.search.studies.ladder import Next
from krscale.search.studies.opening import trials_that_ran
from krscale.search.studies.trial_spec import FinalKey, TuningKey
from krscale.storage.address import CACHE_VARIABLE

ONE = {"search.methods": ["plain"]}


def test_more_trials_and_finals_of_a_new_winner_only(tmp_path: Path) -> None:
    # The user's own setting is poor, so that a later trial wins.
    poor = {**ONE, "train.learning_rate": 0.49}
    before = ladder(tmp_path, experiment(**poor, **{"search.trials_per_size": 1}))
    play_all(before)
    key = TuningKey("plain", "1/4")
    former = before.winner("plain", "1/4")
    assert former is not None

    after = ladder(tmp_path, experiment(**poor, **{"search.trials_per_size": 6}))
    played = play_all(after)
    winner = after.winner("plain", "1/4")
    assert winner is not None
    assert winner.params != former.params
    tuned = [a for a in played if a.key == key]
    finals = [a for a in played if a.key == FinalKey("plain", "1/4")]
    assert len(tuned) == 5, "one had run"
    assert [dict(a.values) for a in finals] == [winner.params] * 2
    assert [t.params for t in after.finals[FinalKey("plain", "1/4")].complete()] == [
        winner.params
    ] * 2
    assert [t.user_attrs["seed"] for t in after.finals[FinalKey("plain", "1/4")].complete()] == [
        1000,
        1001,
    ]


def test_a_winner_that_stays_is_not_trained_again(tmp_path: Path) -> None:
    best = {**ONE, "train.learning_rate": 0.1}
    play_all(ladder(tmp_path, experiment(**best, **{"search.trials_per_size": 2})))
    more = ladder(tmp_path, experiment(**best, **{"search.trials_per_size": 4}))
    played = play_all(more)
    assert played
    assert not [a for a in played if isinstance(a.key, FinalKey)]


def test_finals_that_wait_for_a_former_winner_are_not_run(tmp_path: Path) -> None:
    poor = {**ONE, "train.learning_rate": 0.49}
    before = ladder(tmp_path, experiment(**poor, **{"search.trials_per_size": 1}))
    while isinstance(upcoming := before.next(), Assignment) and not isinstance(
        upcoming.key, FinalKey
    ):
        play(before, upcoming)
    del before  # killed with its finals planned, one of them running

    after = ladder(tmp_path, experiment(**poor, **{"search.trials_per_size": 6}))
    finals = [a for a in play_all(after) if isinstance(a.key, FinalKey)]
    assert finals
    for assignment in finals:
        winner = after.winner("plain", assignment.key.capacity)
        assert winner is not None
        assert dict(assignment.values) == winner.params


def finished(folder: Path, **changes: object) -> Experiment:
    """A run that finished with 5 trials a study."""
    config = experiment(**changes, storage_path=str(folder), name="one")
    with run_folder(config, {}):
        play_all(ladder(config.run_path, config))
        remember_budgets(config, {})
    return config


def test_a_search_that_went_on_and_was_killed_has_lost_no_trials(tmp_path: Path) -> None:
    """A limit ended it before its plan was full and was then raised; no trial is lost."""
    settings = {**ONE, "search.early_stopping": "none", "search.trials_per_size": 5}
    limited = experiment(**settings, **{"search.max_epochs": 16}, storage_path=str(tmp_path))
    found = ladder(limited.run_path, limited)
    play_all(found)
    before = {study.optuna.study_name: study.num_counted for study in found.tuning.values()}
    assert before == {"plain@1/4": 2, "plain@1/64": 2}
    remember_budgets(limited, before)

    raised = experiment(**settings, **{"search.max_epochs": 99}, storage_path=str(tmp_path))
    going_on = ladder(limited.run_path, raised)
    assert isinstance(going_on.next(), Assignment)
    del going_on  # killed
    assert _lost_trials(ladder(limited.run_path, raised)) == []

    remember_budgets(limited, {**before, "plain@1/64": 4})
    (line,) = _lost_trials(ladder(limited.run_path, raised))
    assert "holds fewer trials than when its search finished: plain@1/64 (2 of 4)." in line


def extend(folder: Path, *overrides: str) -> Experiment:
    where = (f"storage_path={folder}", "name=one")
    return load_or_extend(None, [*where, *overrides])


def test_additions_count_from_the_finished_budget_so_a_crash_adds_nothing_twice(
    tmp_path: Path,
) -> None:
    finished(tmp_path, **ONE)
    first = extend(tmp_path, "search.trials_per_size=+8")
    assert first.search.trials_per_size == 13
    assert extend(tmp_path, "search.trials_per_size=+8") == first, "the same command after a crash"
    remember_budgets(first, {})
    assert extend(tmp_path, "search.trials_per_size=+8").search.trials_per_size == 21


def test_a_search_that_finished_when_sizes_were_rungs_grows(tmp_path: Path) -> None:
    budgets = {"search.trials_per_rung": 5, "search.num_final_seeds": 2}
    (tmp_path / "one").mkdir()
    write_json(tmp_path / "one" / "finished.json", budgets)
    for name in ("search.trials_per_rung", "search.trials_per_size"):
        assert extend(tmp_path, f"{name}=+8").search.trials_per_size == 13


def test_an_addition_counts_from_what_another_machine_has_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if it counts from what this machine last saw of the run, or saw never."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "here"))
    bucket = tmp_path / "bucket"
    for finished_with in (5, 9):
        budgets = {"search.trials_per_size": finished_with, "search.num_final_seeds": 2}
        write_json(bucket / "one" / "finished.json", budgets)
        config = load_or_extend(
            None, [f"storage_path=file://{bucket}", "name=one", "search.trials_per_size=+8"]
        )
        assert config.search.trials_per_size == finished_with + 8


@pytest.mark.parametrize(
    "overrides",
    [
        ("search.trials_per_size=+4", "search.trials_per_size=+4"),
        ("search.trials_per_size=+4", "search.trials_per_size=+8"),
        ("search.num_final_seeds=+1", " search.num_final_seeds = +4"),
        ("search.trials_per_size=+4", "search.trials_per_rung=+4"),
    ],
)
def test_two_additions_to_one_budget_are_refused(
    tmp_path: Path, overrides: tuple[str, str]
) -> None:
    """Fails if one of the two is dropped silently."""
    finished(tmp_path, **ONE)
    field = overrides[0].partition("=")[0]
    with pytest.raises(UserError, match=rf"--set {field}: is added to 2 times .*; add once"):
        extend(tmp_path, *overrides)
    both = extend(tmp_path, "search.trials_per_size=+4", "search.num_final_seeds=+1").search
    assert (both.trials_per_size, both.num_final_seeds) == (9, 3)
    again = extend(tmp_path, "search.trials_per_size=5", "search.trials_per_size=+4").search
    assert again.trials_per_size == 9, "the command that began the run, and an addition"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.num_epochs=+3", "only search.num_final_seeds and search.trials_per_size"),
        ("search.trials_per_size=+8", "nothing to add to: no search has finished"),
    ],
)
def test_what_cannot_be_added_to_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        extend(tmp_path, override)


def start(config: Experiment, renewed: tuple[str, ...] = ()) -> None:
    """Begin as a search does: claim the folder."""
    space = load_space(config, 6).describe()
    with run_folder(
        config,
        {"space": space},
        spent=lambda folder: trials_that_ran(folder / "journal.log"),
        renewed=renewed,
    ):
        pass


def test_a_budget_may_grow_and_shrink_to_what_ran_but_not_below(tmp_path: Path) -> None:
    small = {**ONE, "storage_path": str(tmp_path), "name": "one", "search.num_final_seeds": 1}
    config = experiment(**small)
    start(config)
    found = ladder(config.run_path, config)
    for _ in range(6):
        upcoming = found.next()
        assert isinstance(upcoming, Assignment)
        play(found, upcoming)
    start(experiment(**small, **{"search.trials_per_size": 50}))
    start(experiment(**small, **{"search.trials_per_size": 3, "search.max_epochs": 7}))
    with pytest.raises(UserError, match=r"search.trials_per_size: 3 have run .*\(got 2\)"):
        start(experiment(**small, **{"search.trials_per_size": 2}))
    with pytest.raises(UserError, match=r"belongs to another experiment: train\.num_epochs was 4"):
        start(experiment(**small, **{"train.num_epochs": 5}))


def rewrite(run: Path, **changes: object) -> None:
    """Replace sections of a run's experiment.json, as if another version had written it."""
    content = json.loads((run / "experiment.json").read_text())
    content["experiment"] |= changes
    write_json(run / "experiment.json", content)


def test_a_run_older_than_a_field_goes_on_while_the_field_has_its_default(tmp_path: Path) -> None:
    small = {**ONE, "storage_path": str(tmp_path), "name": "one"}
    config = experiment(**small)
    start(config)
    (config.run_path / "journal.log").touch()  # its trials have begun
    distill = config.model_dump(mode="json")["distill"]
    del distill["crd_embedding_size"], distill["posterior"]
    rewrite(config.run_path, distill=distill, tracking={"no_longer": 1})
    with pytest.raises(UserError, match=r"distill\.crd_embedding_size was 128, is now 64"):
        start(experiment(**small, **{"distill.crd_embedding_size": 64}))
    with pytest.raises(UserError, match=r"distill\.posterior\.dkd was 1\.0, is now 0\.5"):
        start(experiment(**small, **{"distill.posterior.dkd": 0.5}))
    start(config)
    assert "crd_embedding_size" in (config.run_path / "experiment.json").read_text()


def test_a_table_of_free_names_is_not_filled_up_with_the_default_one(tmp_path: Path) -> None:
    small = {**ONE, "storage_path": str(tmp_path), "name": "one"}
    config = experiment(**small, **{"teacher.options": {}})
    start(config)
    (config.run_path / "journal.log").touch()  # its trials have begun
    start(config)
    with pytest.raises(UserError, match=r"teacher\.options\.num_blocks was None, is now 2"):
        start(experiment(**small))


def test_a_field_that_is_no_more_is_named(tmp_path: Path) -> None:
    config = experiment(**ONE, storage_path=str(tmp_path), name="one")
    start(config)
    content = config.model_dump(mode="json")
    rewrite(config.run_path, distill={**content["distill"], "granularty": 3})
    with pytest.raises(UserError) as caught:
        start(config)
    error = str(caught.value)
    assert "was begun by another version of krscale (commit " in error
    assert "distill.granularty: unknown key" in error
    assert "Did you mean 'distill.granularity'?" in error
    assert "--set name=" in error


def space_file(folder: Path, high: float) -> dict[str, object]:
    path = folder / "space.toml"
    path.write_text(
        f"""
        [plain]
        "train.learning_rate" = {{ type = "float", low = 0.01, high = {high} }}
        [kr]
        "train.learning_rate" = {{ type = "float", low = 0.01, high = 0.5 }}
        """
    )
    return {"search.space": str(path), "storage_path": str(folder), "name": "one"}


def test_a_changed_space_is_said_and_gone_on_with_knowingly(tmp_path: Path) -> None:
    old = experiment(**space_file(tmp_path, high=0.5))
    start(old)
    before = ladder(old.run_path, old)
    former = play_all(before)

    new = experiment(**space_file(tmp_path, high=0.3))
    with pytest.raises(UserError) as caught:
        start(new)
    error = str(caught.value)
    assert "space.plain.train.learning_rate was 'FloatDistribution(high=0.5" in error
    assert "is now 'FloatDistribution(high=0.3" in error
    assert "space.kr" not in error
    assert "--new-space" in error

    start(new, renewed=SPACE)
    after = ladder(new.run_path, new)
    played = play_all(after)
    assert {a.key.method for a in played} == {"plain"}, "the space of kr is as it was"
    assert len(played) == 2 * (5 + 2)
    assert not {a.name for a in played} & {a.name for a in former}, "MLflow tells them apart"
    back = experiment(**space_file(tmp_path, high=0.5))
    assert ladder(back.run_path, back).next() is Next.DONE, "the old space has had its trials"


def test_a_changed_space_has_trials_though_the_time_of_the_former_one_has_passed(
    tmp_path: Path,
) -> None:
    now = [0.0]

    def opened(high: float) -> Ladder:
        config = experiment(**space_file(tmp_path, high), **{"search.max_wall_seconds": 20.0})
        return ladder(tmp_path / "one", config, clock=lambda: now[0])

    def end(found: Ladder) -> None:
        for _ in range(4):
            upcoming = found.next()
            assert isinstance(upcoming, Assignment)
            play(found, upcoming)
        now[0] += 20.0
        play_all(found)
        assert found.budget.spent()

    end(opened(0.5))
    assert opened(0.5).complete
    for _ in range(2):  # killed after one trial began, twice
        first = opened(0.08).next()
        assert isinstance(first, Assignment)
        assert first.key.method == "plain", "the space of kr is as it was"
    end(opened(0.08))
    assert opened(0.08).complete
    assert opened(0.5).complete, "the time of the old space has passed"


def keep_student(found: Ladder, trial: Assignment) -> None:
    """Leave a file where the actor would keep the student of a final training."""
    if isinstance(trial.key, FinalKey):
        path = student_path(found.run_path, trial.key.method, trial.key.capacity, trial.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(trial.name)


@pytest.mark.parametrize("days_back", [0, 1])
def test_a_space_that_comes_back_has_its_own_students_and_settings(
    days_back: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The students of the other space were trained with the same seeds, into the same files.

    This also holds if the clock is put back before every start.
    """
    offset = timedelta()

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + offset

    monkeypatch.setattr(optuna.storages.journal._storage, "datetime", Clock)

    def search(high: float) -> tuple[Ladder, list[str], list[Assignment]]:
        nonlocal offset
        offset -= timedelta(days=days_back)
        found = ladder(tmp_path / "one", experiment(**space_file(tmp_path, high)))
        lines = _lost_students(found)
        played = play_all(found)
        for trial in played:
            keep_student(found, trial)
        return found, lines, played

    def kept(found: Ladder) -> bool:
        """Return whether the students on the disk are those of the curve."""
        trials = [(key, trial) for key, study in found.finals.items() for trial in study.complete()]
        return len(trials) == 2 * 2 * 2 and all(
            student_path(
                found.run_path, key.method, key.capacity, int(trial.user_attrs["seed"])
            ).read_text()
            == found.trial_name(key, trial.number)
            for key, trial in trials
        )

    def insight_is_of(found: Ladder) -> bool:
        said = find_insight(found.run_path).studies
        best = {(one.method, one.capacity): one.best for one in said}
        return all(best[k.method, k.capacity] == s.winner().params for k, s in found.tuning.items())

    for high, num_finals in ((0.5, 8), (0.08, 4), (0.5, 4), (0.5, 0), (0.08, 4)):
        found, lines, played = search(high)
        assert sum(isinstance(trial.key, FinalKey) for trial in played) == num_finals
        assert kept(found)
        assert insight_is_of(found)
        came_back = num_finals == 4 and all(isinstance(trial.key, FinalKey) for trial in played)
        assert ["another search space" in line for line in lines] == [True] * came_back
        assert not any("/kr/" in line for line in lines), "its space is as it was"


def test_a_space_that_is_new_after_another_came_back_is_the_present_one(tmp_path: Path) -> None:
    """Its insight, and so the page, was that of the space that had come back."""
    for high in (0.5, 0.08, 0.5, 0.07):
        found = ladder(tmp_path / "one", experiment(**space_file(tmp_path, high)))
        play_all(found)
        said = find_insight(found.run_path).studies
        best = {(one.method, one.capacity): one.best for one in said}
        for key, study in found.tuning.items():
            winner = study.winner()
            assert winner is not None
            assert best[key.method, key.capacity] == winner.params, high


HOLD = """
import sys
from krscale.config import load
from krscale.runs.folder import run_folder
with run_folder(load(None, [f"storage_path={sys.argv[1]}", "name=one"]), {}):
    print("inside", flush=True)
    sys.stdin.read()
"""


def test_a_second_start_names_the_first_and_a_dead_one_does_not_block(tmp_path: Path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    config = load(None, [f"storage_path={tmp_path}", "name=one"])
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"inside\n"
        message = rf"run now by process {first.pid} on \S+, since 20"
        with pytest.raises(UserError, match=message), run_folder(config, {}):
            pass
    finally:
        first.kill()
        first.communicate()
    with run_folder(config, {}):
        pass
