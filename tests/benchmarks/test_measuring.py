"""`benchmarks/parts/measuring.py`: turns in random order, ratios, their intervals."""

from __future__ import annotations

import pytest
from parts.measuring import interleave, ratio, ratio_interval


def test_every_work_is_timed_once_a_round_and_follows_each_of_the_others() -> None:
    ran: list[str] = []
    ticks = iter(range(1000))
    work = {name: lambda name=name: ran.append(name) for name in "abc"}
    found = interleave(work, 20, lambda: float(next(ticks)))
    rounds = ["".join(ran[first : first + 3]) for first in range(0, len(ran), 3)]
    assert len(rounds) == 21
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len(set(rounds)) == 6
    assert found == {name: [1.0] * 20 for name in "abc"}


def test_a_ratio_is_of_the_rounds_and_one_disturbed_round_moves_neither_it_nor_its_interval() -> (
    None
):
    under = [1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0]
    over = [1.1 * seconds for seconds in under]
    over[4] = 40.0
    seconds = {"over": over, "under": under}
    assert ratio(seconds, "over", "under") == pytest.approx(1.1)
    assert ratio_interval(seconds, "over", "under") == pytest.approx([1.1, 1.1])


def test_an_interval_is_wider_where_rounds_differ() -> None:
    def width(spread: float) -> float:
        over = [1.0 + spread * (number % 5 - 2) for number in range(20)]
        low, high = ratio_interval({"over": over, "under": [1.0] * 20}, "over", "under")
        assert low <= 1.0 <= high
        return high - low

    assert width(0.0) == 0.0
    assert 0.0 < width(0.01) < width(0.1)
