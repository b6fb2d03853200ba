"""Capacities as widths."""

import pytest

from krscale.config import load
from krscale.data import describe_data
from krscale.errors import UserError
from krscale.rungs import find_rung, ladder_rungs


def rungs_of(*settings: str):
    config = load(
        None, ["teacher.width=64", "ladder.capacities=['1/64', '1/16', '1/4']", *settings]
    )
    return ladder_rungs(config, describe_data(config.data, config.cache_path))


def test_rungs_come_smallest_first_and_near_their_share() -> None:
    rungs = rungs_of("ladder.capacities=['1/4', '1/64', '1/16']")
    assert [rung.capacity for rung in rungs] == ["1/64", "1/16", "1/4"]
    teacher = 64 * rungs[0].num_parameters
    assert [rung.num_parameters for rung in rungs[1:]] == pytest.approx(
        [teacher / 16, teacher / 4], rel=0.1
    )


def test_widths_are_the_nearest_multiples_where_the_processor_wants_them() -> None:
    shares = "ladder.capacities=['1/50', '1/20', '1/5']"
    free, blocks = rungs_of(shares), rungs_of(shares, "student.width_multiple=4")
    assert any(rung.width % 4 for rung in free)
    for near, rung in zip(free, blocks, strict=True):
        assert rung.width % 4 == 0
        assert abs(rung.width - near.width) <= 2
        assert rung.capacity == near.capacity
    assert [r.num_parameters for r in blocks] != [r.num_parameters for r in free], "as they are"


def test_one_student_gets_the_width_of_its_rung() -> None:
    config = load(None, ["teacher.width=64", "student.width_multiple=8", "distill.capacity=1/16"])
    task = describe_data(config.data, config.cache_path)
    assert (
        find_rung(config, task)
        == rungs_of("student.width_multiple=8", "ladder.capacities=['1/16']")[0]
    )


def test_a_multiple_that_changes_the_size_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"width_multiple: 32 .* 1/64: width 32 has .* of width \d+,"
    ):
        rungs_of("student.width_multiple=32", "ladder.capacities=['1/64']")
    one = ["teacher.width=64", "student.width_multiple=32", "distill.capacity=1/64"]
    config = load(None, one)
    with pytest.raises(UserError, match="too coarse for capacity 1/64"):
        find_rung(config, describe_data(config.data, config.cache_path))


def test_rungs_that_a_multiple_throws_together_are_refused() -> None:
    with pytest.raises(UserError, match=r"1/20 and 1/16 .* of multiples of .* = 16, to width 16"):
        rungs_of(
            "student.width_multiple=16", "ladder.capacities=['1/20', '1/16']", "teacher.width=48"
        )
