from __future__ import annotations

from pathlib import Path

from parts.claims.families import FAMILIES, OPPONENTS, QUICK, partner


def test_families_differ_in_methods_alone(tmp_path: Path) -> None:
    first, *others = [family.experiment(tmp_path, QUICK) for family in FAMILIES]
    for other in others:
        for section in ("data", "views", "teacher", "student", "store", "ladder", "train"):
            assert getattr(other, section) == getattr(first, section)
        same = {"methods": first.search.methods, "space": first.search.space}
        assert other.search.model_copy(update=same) == first.search


def test_every_opponent_is_in_a_family() -> None:
    methods = [method for family in FAMILIES for method in family.methods]
    assert set(OPPONENTS) < set(methods)


def test_the_partner_of_a_winner_differs_in_granularity_alone(tmp_path: Path) -> None:
    best = {"distill.granularity": 3, "distill.sparsity": 0.25, "train.learning_rate": 0.123}
    found = partner("1/32", best, num_taps=6)
    experiment = found.experiment(tmp_path, [])
    assert found.label == "kr_layer_wise"
    assert experiment.ladder.capacities == ("1/32",)
    assert experiment.distill.granularity == 6
    assert experiment.distill.sparsity == 0.25
    assert experiment.train.learning_rate == 0.123
    assert experiment.search.num_final_seeds >= 5


def test_a_layer_wise_winner_is_compared_with_an_aggregated_one(tmp_path: Path) -> None:
    found = partner("1/32", {"distill.granularity": 6}, num_taps=6)
    assert found.label == "kr_aggregated"
    assert found.experiment(tmp_path, []).distill.granularity == 3
