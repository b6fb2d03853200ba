"""Which experiments may continue in the folder of a run that has begun."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from krscale.config import Experiment, load
from krscale.errors import UserError
from krscale.files import write_json
from krscale.runs.experiment_file import check_or_write, last_start, read_experiment
from krscale.tracking.spool import Event, Spool


def experiment(storage: Path, *sets: str) -> Experiment:
    return load(None, [f"storage_path={str(storage)!r}", "name=run", *sets])


def start(
    storage: Path,
    *sets: str,
    bound: Mapping[str, object] | None = None,
    spent: int = 0,
    renewed: tuple[str, ...] = (),
) -> Path:
    config = experiment(storage, *sets)
    config.run_path.mkdir(parents=True, exist_ok=True)
    used = {"search.trials_per_size": spent}
    check_or_write(config.run_path, config, bound or {}, lambda folder: used, renewed)
    return config.run_path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    folder = start(tmp_path, "train.num_epochs=3")
    assert read_experiment(folder).train.num_epochs == 3
    assert last_start(folder) == (experiment(tmp_path).tracking, tmp_path)
    assert last_start(tmp_path) is None
    with pytest.raises(UserError, match=r"not the folder of a run: it has no experiment\.json"):
        read_experiment(tmp_path)


def test_a_moved_folder_is_where_it_is_now(tmp_path: Path) -> None:
    start(
        tmp_path / "old",
        f"data.path={str(tmp_path / 'old' / 'images')!r}",
        "data.source=image_folder",
    )
    (tmp_path / "old").rename(tmp_path / "new")
    found = read_experiment(tmp_path / "new" / "run")
    assert Path(found.storage_path) == tmp_path / "new"
    assert Path(found.data.path) == tmp_path / "new" / "images"


def begin(folder: Path) -> None:
    """Leave in a run folder what its first trial leaves."""
    (folder / "journal.log").touch()


def test_every_field_that_differs_is_named(tmp_path: Path) -> None:
    begin(start(tmp_path, bound={"seed": 1}))
    with pytest.raises(UserError) as caught:
        start(tmp_path, "train.num_epochs=3", "views.num_views=2", bound={"seed": 2})
    for said in ("seed was 1, is now 2", "train.num_epochs was", "views.num_views was"):
        assert said in str(caught.value)


def test_a_run_that_was_refused_takes_what_is_corrected(tmp_path: Path) -> None:
    """With `train.num_workers=64` mistyped, the name was taken until its folder was deleted."""
    folder = start(tmp_path, "train.num_workers=64", bound={"space": {"kr": 1}})
    for name in ("origin.json", "splits.csv"):
        (folder / name).write_text("of data that a correction may change")
    Spool(folder / "tracking" / "spool.jsonl")
    start(tmp_path, "train.num_workers=2", bound={"space": {"kr": 2}})
    assert read_experiment(folder).train.num_workers == 2
    assert not (folder / "origin.json").exists()
    assert not (folder / "splits.csv").exists()


@pytest.mark.parametrize("trace", ["journal.log", "students", "curve.json", "checkpoint"])
def test_a_run_that_has_begun_stays_what_it_is(tmp_path: Path, trace: str) -> None:
    folder = start(tmp_path)
    (folder / trace).mkdir()
    (folder / "origin.json").write_text("of its data")
    with pytest.raises(UserError, match=r"train\.num_workers was 1, is now 2"):
        start(tmp_path, "train.num_workers=2")
    assert (folder / "origin.json").exists()


def test_a_run_that_is_recorded_has_begun(tmp_path: Path) -> None:
    folder = start(tmp_path)
    Spool(folder / "tracking" / "spool.jsonl").append(Event("start", "kr", 0))
    with pytest.raises(UserError, match=r"train\.num_workers was 1, is now 2"):
        start(tmp_path, "train.num_workers=2")


def test_a_run_whose_results_are_being_put_aside_has_begun(tmp_path: Path) -> None:
    folder = start(tmp_path)
    write_json(folder / "origin.json", {"being put aside in": "earlier-1"})
    with pytest.raises(UserError, match=r"train\.num_workers was 1, is now 2"):
        start(tmp_path, "train.num_workers=2")
    assert (folder / "origin.json").exists()


def test_what_changes_no_trial_may_differ(tmp_path: Path) -> None:
    start(tmp_path)
    folder = start(tmp_path, "search.max_wall_seconds=60", "tracking.enabled=false")
    assert read_experiment(folder).search.max_wall_seconds == 60


def test_a_space_may_differ_knowingly(tmp_path: Path) -> None:
    begin(start(tmp_path, bound={"space": {"kr": {"train.learning_rate": [0.1, 1.0]}}}))
    other = {"space": {"kr": {"train.learning_rate": [0.1, 2.0]}}}
    with pytest.raises(UserError, match="--new-space goes on knowingly"):
        start(tmp_path, bound=other)
    start(tmp_path, bound=other, renewed=("space.",))


def test_a_budget_shrinks_to_what_has_run(tmp_path: Path) -> None:
    start(tmp_path, "search.trials_per_size=8")
    with pytest.raises(UserError, match=r"5 have run .* already \(got 4\)"):
        start(tmp_path, "search.trials_per_size=4", spent=5)
    folder = start(tmp_path, "search.trials_per_size=5", spent=5)
    assert read_experiment(folder).search.trials_per_size == 5
