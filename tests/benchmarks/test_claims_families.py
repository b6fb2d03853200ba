from __future__ import annotations

from pathlib import Path

import pytest
from parts.claims.families import ABLATIONS, FAMILIES, OPPONENTS, QUICK, ablations, partner
from parts.claims.tasks import TASKS, TaskRun, search_of

from krscale.search.studies.scheduling import FINAL_SEED_OFFSET


@pytest.fixture
def run(tmp_path: Path) -> TaskRun:
    """The embedded task."""
    return TaskRun(TASKS[0], tmp_path)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_families_differ_in_methods_alone(task, tmp_path: Path) -> None:
    run = TaskRun(task, tmp_path, changes=QUICK if task.name == "glyphs" else ())
    first, *others = [run.experiment(family) for family in FAMILIES]
    for other in others:
        for section in ("data", "views", "teacher", "student", "store", "ladder", "train"):
            assert getattr(other, section) == getattr(first, section)
        same = {"methods": first.search.methods, "space": first.search.space}
        assert other.search.model_copy(update=same) == first.search
    assert first.search.trials_per_size >= 12 or run.changes


def test_every_opponent_is_in_a_family() -> None:
    methods = [method for family in FAMILIES for method in family.methods]
    assert set(OPPONENTS) < set(methods)


def test_searches_share_the_task_and_no_seed(run: TaskRun) -> None:
    one, other = (run.experiment(FAMILIES[0], number) for number in (0, 1))
    assert one.run_path != other.run_path
    assert one.search.seed != other.search.seed
    for section in ("data", "views", "teacher", "student", "store", "ladder"):
        assert getattr(one, section) == getattr(other, section)
    seeds = [
        {e.train.seed + FINAL_SEED_OFFSET + n for n in range(e.search.num_final_seeds)}
        for e in (one, other)
    ]
    assert not seeds[0] & seeds[1]
    assert {search_of(seed, FINAL_SEED_OFFSET) for seed in seeds[1]} == {1}


def test_the_partner_of_a_winner_differs_in_granularity_alone(run: TaskRun) -> None:
    best = {"distill.granularity": 3, "distill.sparsity": 0.25, "train.learning_rate": 0.123}
    found = partner("1/32", best, num_taps=6)
    experiment = run.experiment(found)
    assert found.label == "kr_layer_wise"
    assert experiment.ladder.capacities == ("1/32",)
    assert experiment.distill.granularity == 6
    assert experiment.distill.sparsity == 0.25
    assert experiment.train.learning_rate == 0.123
    assert experiment.search.num_final_seeds >= 5


def test_a_layer_wise_winner_is_compared_with_an_aggregated_one(run: TaskRun) -> None:
    found = partner("1/32", {"distill.granularity": 6}, num_taps=6)
    assert found.label == "kr_aggregated"
    assert run.experiment(found).distill.granularity == 3


def test_ablations_leave_out_one_part_each_and_none_the_winner_has_not(run: TaskRun) -> None:
    best = {
        "distill.sparsity": 0.0,
        "distill.kr_weight": 3.0,
        "distill.auxiliary_schedule": "falling",
        "distill.where_weight": 1.0,
    }
    distill = run.experiment(FAMILIES[0]).distill
    found = {family.label: run.experiment(family) for family in ablations("1/32", best, distill)}
    assert set(found) == set(ABLATIONS) - {"without sparsity"}
    for label, experiment in found.items():
        assert experiment.distill.kr_weight == 3.0
        for path, value in ABLATIONS[label].items():
            assert getattr(experiment.distill, path.removeprefix("distill.")) == value


def test_what_is_written_down_has_no_path_of_this_machine(tmp_path: Path) -> None:
    run = TaskRun(TASKS[1], tmp_path, data_path=str(tmp_path))
    written = run.described(run.experiment(FAMILIES[0]).model_dump(mode="json"))
    assert written["data"]["path"] == "fashion-mnist"
    assert not run.missing_data
    assert TaskRun(TASKS[1], tmp_path, data_path=str(tmp_path / "no")).missing_data


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_what_decides_is_searched_twice_on_every_task(task, tmp_path: Path) -> None:
    run = TaskRun(task, tmp_path, num_searches=2)
    searched = {f.name: run.searches_of(f) for f in run.families}
    assert searched["kr"] == searched["features"] == searched["reviewkd"] == 2
    assert searched["rkd"] == (2 if task.name == "fashion_mnist" else 1)
