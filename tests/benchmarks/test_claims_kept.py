"""What finished searches leave, and the whole path to the page with simulated searches."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import claims
import pytest
from benchmarks.claims_records import record
from parts.claims import kept
from parts.claims.families import ABLATIONS, FAMILIES, KR, OPPONENTS, QUICK, Family
from parts.claims.gathering import followers, gather
from parts.claims.kept import Kept, find_kept
from parts.claims.order import planned
from parts.claims.plan import _of_task, plan
from parts.claims.tasks import TASKS, TaskRun
from running import own_environment

from krscale.files import read_json

SIZES = ("1/100", "1/32")
RESIDUAL = [0.3, 0.2, 0.1]


@pytest.fixture
def run(tmp_path: Path) -> TaskRun:
    """The embedded task, small."""
    return TaskRun(TASKS[0], tmp_path, changes=QUICK, num_searches=1)


def played(family: Family, name: str = "played") -> Kept:
    """What a search of a family might have left."""
    best = {"distill.granularity": 3, "distill.sparsity": 0.3, "distill.where_weight": 0.5}
    records = tuple(
        dataclasses.replace(
            record(family.label_of(method), [0.5, 0.6, 0.7], capacity=size), best=(best,)
        )
        for size in SIZES
        for method in family.methods
        if not family.label or size.replace("/", "-") in family.name
    )
    if family.name == "without-sparsity":
        records = tuple(record(family.label, [0.4, 0.5, 0.6], capacity=size) for size in SIZES)
    teacher = {"model": "resnet", "width": 16, "num_parameters": 9, "flops": 9,
               "val_accuracy": 0.9, "test_accuracy": 0.9, "fingerprint": "f"}  # fmt: skip
    residuals = {r.capacity: dict.fromkeys(r.test, RESIDUAL) for r in records}
    return Kept(name, "abc", teacher, 1.0, records, residuals if family.traced else {})


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the runs that count as finished; their folders then hold what `played` returns."""
    names: set[str] = set()

    def of_run(run: TaskRun, family: Family, number: int, experiment: Any) -> Kept:
        return played(family, experiment.name)

    monkeypatch.setattr(kept, "is_finished", lambda experiment: experiment.name in names)
    monkeypatch.setattr(kept, "_of_run", of_run)
    return names


def test_a_search_is_found_without_the_folder_of_its_run(run: TaskRun, finished: set[str]) -> None:
    family = FAMILIES[0]
    assert find_kept(run, family) is None
    finished.add(run.experiment(family).name)
    first = find_kept(run, family)
    finished.clear()
    assert find_kept(run, family) == first == played(family, run.experiment(family).name)
    path = run.record_path(family)
    assert path.name == "glyphs-kr-0.json"
    assert len(path.read_text().splitlines()) < 200
    assert find_kept(run, family, 1) is None


def test_what_other_settings_left_is_not_taken(run: TaskRun, finished: set[str]) -> None:
    family = FAMILIES[0]
    finished.add(run.experiment(family).name)
    assert find_kept(run, family)
    other = dataclasses.replace(run, changes=(*QUICK, "distill.alignment=depth"))
    assert other.record_path(family) == run.record_path(family)
    assert find_kept(other, family) is None
    # A run of another formulation has another folder, so that neither blocks the other.
    assert other.experiment(family).run_path != run.experiment(family).run_path
    spaced = dataclasses.replace(family, changes=("search.space=claims_without_sparsity",))
    assert run.key(spaced) != run.key(family)


def test_where_things_are_on_a_machine_is_no_part_of_the_key(run: TaskRun, tmp_path: Path) -> None:
    moved = dataclasses.replace(run, storage=tmp_path / "elsewhere")
    assert moved.key(FAMILIES[0]) == run.key(FAMILIES[0])
    photographs = TaskRun(TASKS[1], tmp_path)
    there = dataclasses.replace(photographs, data_path=str(tmp_path))
    assert there.key(FAMILIES[0]) == photographs.key(FAMILIES[0])


def test_what_is_changed_is_not_kept_in_the_repository(run: TaskRun, tmp_path: Path) -> None:
    assert run.records == tmp_path / "records"
    whole = TaskRun(TASKS[0], tmp_path)
    assert whole.records == claims.ROOT / "benchmarks" / "results" / "claims"


def test_what_decides_most_comes_first(tmp_path: Path) -> None:
    runs = [TaskRun(task, tmp_path) for task in TASKS]
    searches = planned(runs)
    assert [(s.run.task.name, s.family.name) for s in searches[:4]] == [
        ("glyphs", "kr"),
        ("fashion_mnist", "kr"),
        ("cifar10", "kr"),
        ("glyphs", "baselines"),
    ]
    numbers = [search.number for search in searches]
    assert numbers == sorted(numbers)
    assert len(set(searches)) == len(searches)
    for run in runs:
        methods = [{m for s in searches if s.run == run and s.number == number
                    for m in s.family.methods} for number in (0, 1)]  # fmt: skip
        assert {"kr", *OPPONENTS} - {"logit_standardisation", "pkt"} <= methods[0]
        assert {"kr", "crd", "at", "fitnet", "reviewkd"} <= methods[1] <= methods[0]


def test_the_plan_says_what_each_search_costs(run: TaskRun) -> None:
    lines = list(plan([run], ["baselines"]))
    assert lines[0].startswith("Glyphs: 1 searches of a family at most")
    assert any(line.startswith("  kd: one training at each size") for line in lines)
    assert any("glyphs, baselines, search 1: plain, kd: 8 trials and 8 final" in s for s in lines)
    assert lines[-1].startswith("together: ")


def test_the_plan_says_that_records_do_not_know_the_images_that_are_named(
    run: TaskRun, tmp_path: Path
) -> None:
    """With other images than those of the records, searches that never ran counted as finished."""
    assert not any("images:" in line for line in _of_task(run, {}, 1.0, 1.0))
    named = dataclasses.replace(run, data_path=str(tmp_path))
    (line,) = [line for line in _of_task(named, {}, 1.0, 1.0) if "images:" in line]
    assert f"{tmp_path}; records of finished searches do not say which images they are of" in line


def test_from_searches_to_the_page(
    run: TaskRun, finished: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []

    def search(run: TaskRun, family: Family, number: int, *, quiet: bool) -> None:
        searched.append(family.name)
        finished.add(run.experiment(family, number).name)

    monkeypatch.setattr(claims, "search", search)
    monkeypatch.setattr(claims, "draw_figures", lambda result, folder: [])
    command = ["--quick", "--quiet", "--storage", str(tmp_path)]
    assert claims.run(command) == 0
    assert searched[: len(FAMILIES)] == [family.name for family in FAMILIES]
    assert len(searched) == len(FAMILIES) + len(SIZES) * (1 + len(ABLATIONS))
    (task,) = read_json(tmp_path / "claims.json")["tasks"]
    assert task["unfinished"] == []
    methods = task["sizes"][0]["methods"]
    assert {KR, "kr_without_sparsity", "kr+kd", *OPPONENTS} <= set(methods)
    assert list(task["C1"]["residual_by_depth"]) == list(SIZES)
    assert len(task["ablations"]) == len(SIZES) * len(ABLATIONS)
    page = (tmp_path / "claims.md").read_text()
    assert f"The opponents are {len(OPPONENTS)}" in page
    assert "Unfinished" not in page
    # The same command again finds all of it, without the folders of the runs.
    finished.clear()
    searched.clear()
    assert claims.run(command) == 0
    assert searched == []


def test_winners_that_no_search_traced_are_trained_again_for_c1(
    run: TaskRun, finished: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_run(run: TaskRun, family: Family, number: int, experiment: Any) -> Kept:
        return played(dataclasses.replace(family, traced=family.name != KR), experiment.name)

    monkeypatch.setattr(kept, "_of_run", of_run)
    winners = next(family for family in FAMILIES if family.name == KR)
    finished.add(run.experiment(winners).name)
    families = followers(run)
    again = [family for family in families if family.name.startswith("c1-winner-")]
    assert [family.name for family in again] == ["c1-winner-1-100", "c1-winner-1-32"]
    assert all("distill.granularity=3" in family.changes for family in again)
    unfinished = gather([run], "")["tasks"][0]["unfinished"]
    parts = [f"kr {name} at {capacity}" for capacity in SIZES for name in ABLATIONS]
    assert [name for name in unfinished if " at " in name] == [
        *(f"c1 at {capacity}" for capacity in SIZES),
        *parts,
    ]
    finished.update(run.experiment(family).name for family in families)
    (task,) = gather([run], "")["tasks"]
    assert not any(" at " in name for name in task["unfinished"])
    assert list(task["C1"]["residual_by_depth"]) == list(SIZES)


@pytest.fixture
def own_ray() -> Iterator[None]:
    """Searches in this process start a Ray, which ends with the test."""
    with own_environment():
        yield


@pytest.mark.drill  # two searches of real trainings
@pytest.mark.timeout(900)
def test_a_miniature(own_ray: None, tmp_path: Path) -> None:
    changes = (
        'ladder.capacities=["1/100"]', "data.glyphs.num_train=320", "data.glyphs.num_val=200",
        "data.glyphs.num_test=200", "teacher.num_epochs=2", "teacher.allow_poor=true",
        "train.num_epochs=2",
    )  # fmt: skip
    command = ["--quick", "--quiet", "--storage", str(tmp_path), "--families", "baselines", "rkd"]
    command += [part for change in changes for part in ("--set", change)]
    assert claims.run(command) == 0
    (task,) = read_json(tmp_path / "claims.json")["tasks"]
    assert {"plain", "kd", "rkd"} == set(task["sizes"][0]["methods"])
    # The records are enough: without the folders of the runs, nothing is searched again.
    for folder in tmp_path.glob("claims-glyphs-*"):
        shutil.rmtree(folder)
    assert claims.run(command) == 0
    assert not list(tmp_path.glob("claims-glyphs-*"))
    assert read_json(tmp_path / "claims.json")["tasks"] == [task]
