from __future__ import annotations

from dataclasses import replace

import pytest
from benchmarks.claims_records import record
from parts.claims.records import Record, merged
from parts.claims.scoreboard import (
    best_on_validation,
    by_size,
    combination_claim,
    gain_claim,
    method_json,
    residual_claim,
    speed_claim,
)


def test_the_opponent_is_chosen_on_validation_not_on_test() -> None:
    records = [
        record("kr", [0.60, 0.61, 0.62]),
        record("kd", [0.50, 0.51, 0.52], val=[0.7, 0.7, 0.7]),
        record("dkd", [0.58, 0.58, 0.58], val=[0.6, 0.6, 0.6]),
    ]
    sizes = by_size(records, ["1/4"])
    assert best_on_validation(sizes["1/4"], ["kd", "dkd"]) == "kd"
    found = gain_claim(sizes)["gain_over_best_opponent"][0]
    assert found["opponent"] == "kd"
    assert found["mean"] == pytest.approx(0.10)
    assert found["differences"] == pytest.approx([0.1, 0.1, 0.1])
    assert found["verdict"] == "holds"
    assert found["goal_met"]


def test_a_small_sure_gain_is_a_claim_that_holds_and_a_goal_that_is_missed() -> None:
    records = [record("kr", [0.505, 0.515, 0.525]), record("plain", [0.50, 0.51, 0.52])]
    found = gain_claim(by_size(records, ["1/4"]))["gain_over_best_opponent"][0]
    assert found["verdict"] == "holds"
    assert not found["goal_met"]


def test_a_loss_is_called_a_loss() -> None:
    records = [record("kr", [0.40, 0.41, 0.42]), record("plain", [0.50, 0.51, 0.52])]
    claim = gain_claim(by_size(records, ["1/4"]))
    assert claim["verdict"] == "does not hold"
    assert claim["gain_over_each"][0]["gain"]["plain"]["mean"] == pytest.approx(-0.10)


def test_combinations_are_compared_with_the_method_alone_at_every_size() -> None:
    records = [
        record("kr+kd", [0.6, 0.6, 0.6], capacity="1/4"),
        record("kd", [0.5, 0.5, 0.5], capacity="1/4"),
        record("kr+kd", [0.3, 0.4, 0.5], capacity="1/32"),
        record("kd", [0.4, 0.4, 0.4], capacity="1/32"),
    ]
    claim = combination_claim(by_size(records, ["1/32", "1/4"]))
    verdicts = [entry["verdict"] for entry in claim["methods"]["kd"]["gain"]]
    assert verdicts == ["undecided", "holds"]
    assert claim["verdict"] == "holds at 1 of 2 pairs, undecided at 1 of 2 pairs"


def test_speed_races_to_the_end_of_plain_and_kd() -> None:
    # KD ends at 0.5; KR rises linearly from 0.1 to 0.9: it reaches 0.5 after 1.5 of KD's 2 epochs.
    records = [
        record("kr", [0.9, 0.9, 0.9]),
        record("kd", [0.5, 0.5, 0.5]),
        record("plain", [0.95, 0.95, 0.95]),
    ]
    claim = speed_claim(by_size(records, ["1/4"]), 10)
    races = claim["sizes"][0]["kr"]
    assert races["steps_to_kd"]["mean"] == pytest.approx(0.75)
    assert races["steps_to_kd"]["verdict"] == "holds"
    assert not races["steps_to_kd"]["goal_met"]
    assert races["steps_to_plain"]["num_censored"] == 3
    assert claim["verdict"] == {"plain": "undecided", "kd": "holds"}


def test_every_seeds_numbers_are_kept() -> None:
    records = [record("kd", [0.5, 0.6, 0.7]), record("plain", [0.5, 0.65, 0.6])]
    size = by_size(records, ["1/4"])["1/4"]
    content = method_json(size["kd"], size, 10)
    assert content["test_accuracy"] == [0.5, 0.6, 0.7]
    assert content["steps_to_kd"] == [20.0, 20.0, 20.0]
    assert content["steps_to_plain"] == [20.0, None, pytest.approx(18.3)]
    assert content["num_trials"] == 6


def test_the_residual_of_the_deepest_third_is_compared_by_seed() -> None:
    pair = {
        "layer_wise": {1: [9.0, 9.0, 2.0], 2: [9.0, 9.0, 4.0]},
        "aggregated": {1: [1.0, 1.0, 1.0], 2: [1.0, 1.0, 2.2]},
    }
    claim = residual_claim({"1/4": pair})
    found = claim["deepest_third_reduction"][0]
    assert found["reductions"] == pytest.approx([0.5, 0.45])
    assert found["mean"] == pytest.approx(0.475)
    assert claim["residual_by_depth"]["1/4"]["layer_wise"] == [[9.0, 9.0, 2.0], [9.0, 9.0, 4.0]]


def test_a_method_without_finals_is_left_out() -> None:
    empty = record("kr", [0.5, 0.5, 0.5])
    empty = type(empty)(**{**vars(empty), "test": {}})
    assert by_size([empty], ["1/4"]) == {"1/4": {}}
    assert gain_claim({"1/4": {}})["verdict"] == "not measured"


def _searched_twice(label: str, first: float, second: float) -> Record:
    one = record(label, [first - 0.001, first, first + 0.001])
    other = record(label, [second - 0.001, second, second + 0.001])
    again = {seed: seed + 100 for seed in one.test}
    moved = replace(
        other,
        test={again[seed]: value for seed, value in other.test.items()},
        val={again[seed]: value for seed, value in other.val.items()},
        curves={again[seed]: curve for seed, curve in other.curves.items()},
        searches=(tuple(again.values()),),
    )
    (found,) = merged([one, moved])
    return found


def test_luck_of_a_search_keeps_a_claim_undecided() -> None:
    """The seeds of one search agree, but the two searches of each method differ widely."""
    records = [_searched_twice("kr", 0.60, 0.70), _searched_twice("kd", 0.55, 0.64)]
    claim = gain_claim(by_size(records, ["1/4"]))["gain_over_best_opponent"][0]
    assert claim["low"] > 0.0
    assert claim["over_searches"]["low"] < 0.0
    assert claim["verdict"] == "undecided"
    steady = [_searched_twice("kr", 0.60, 0.601), _searched_twice("kd", 0.55, 0.551)]
    claim = gain_claim(by_size(steady, ["1/4"]))["gain_over_best_opponent"][0]
    assert claim["verdict"] == "holds"


def test_searches_of_a_method_become_one_record() -> None:
    found = _searched_twice("kr", 0.60, 0.70)
    assert found.num_trials == 12
    assert [len(seeds) for seeds in found.searches] == [3, 3]
    assert found.search_means == pytest.approx([0.60, 0.70])
    content = method_json(found, {"kr": found}, 10)
    assert len(content["test_accuracy"]) == 6
    assert [search["seeds"] for search in content["searches"]] == [
        [1000, 1001, 1002],
        [1100, 1101, 1102],
    ]
