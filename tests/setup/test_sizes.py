"""Capacities as widths."""

import pytest

from krscale.config import load
from krscale.data import describe_data
from krscale.errors import UserError
from krscale.setup.networks import Networks
from krscale.setup.sizes import find_size, ladder_sizes


def sizes_of(*settings: str):
    config = load(
        None, ["teacher.width=64", "ladder.capacities=['1/64', '1/16', '1/4']", *settings]
    )
    return ladder_sizes(Networks.resolve(config, describe_data(config.data, config.cache_path)))


def test_rungs_come_smallest_first_and_near_their_share() -> None:
    sizes = sizes_of("ladder.capacities=['1/4', '1/64', '1/16']")
    assert [size.capacity for size in sizes] == ["1/64", "1/16", "1/4"]
    teacher = 64 * sizes[0].num_parameters
    assert [size.num_parameters for size in sizes[1:]] == pytest.approx(
        [teacher / 16, teacher / 4], rel=0.1
    )


def test_widths_are_the_nearest_multiples_where_the_processor_wants_them() -> None:
    shares = "ladder.capacities=['1/50', '1/20', '1/5']"
    free, blocks = sizes_of(shares), sizes_of(shares, "student.width_multiple=4")
    assert any(size.width % 4 for size in free)
    for near, size in zip(free, blocks, strict=True):
        assert size.width % 4 == 0
        assert abs(size.width - near.width) <= 2
        assert size.capacity == near.capacity
    assert [r.num_parameters for r in blocks] != [r.num_parameters for r in free], "as they are"


def test_one_student_gets_the_width_of_its_size() -> None:
    config = load(None, ["teacher.width=64", "student.width_multiple=8", "distill.capacity=1/16"])
    task = describe_data(config.data, config.cache_path)
    assert (
        find_size(Networks.resolve(config, task))
        == sizes_of("student.width_multiple=8", "ladder.capacities=['1/16']")[0]
    )


def test_a_multiple_that_changes_the_size_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"width_multiple: 32 .* 1/64: width 32 has .* of width \d+,"
    ):
        sizes_of("student.width_multiple=32", "ladder.capacities=['1/64']")
    one = ["teacher.width=64", "student.width_multiple=32", "distill.capacity=1/64"]
    config = load(None, one)
    with pytest.raises(UserError, match="too coarse for capacity 1/64"):
        find_size(Networks.resolve(config, describe_data(config.data, config.cache_path)))


def test_rungs_that_a_multiple_throws_together_are_refused() -> None:
    with pytest.raises(UserError, match=r"1/20 and 1/16 .* of multiples of .* = 16, to width 16"):
        sizes_of(
            "student.width_multiple=16", "ladder.capacities=['1/20', '1/16']", "teacher.width=48"
        )


@pytest.mark.parametrize(
    "sizes",
    [
        "student={{model='odd_networks:Net', options={{form='{}'}}}}",
        "ladder.students=[{{name='own', model='odd_networks:Net', width=6, "
        "options={{form='{}'}}}}]",
    ],
    ids=["share", "own"],
)
def test_a_student_that_looks_at_its_images_is_measured_without_meta_tensors(sizes: str) -> None:
    shares = "ladder.capacities=['1/64']"
    # It can be built on meta tensors, but its forward pass fails on them.
    assert sizes_of(shares, sizes.format("looks at images")) == sizes_of(shares, sizes.format(""))
