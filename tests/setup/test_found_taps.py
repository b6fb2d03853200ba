"""Taps of networks that name none: found once, and written into the experiment with stages."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from foreign_networks import NUM_CLASSES

from krscale.config import Experiment, load, with_values
from krscale.errors import UserError
from krscale.setup.found_taps import describe_taps, with_found_taps
from krscale.setup.networks import Networks

RESNET = ("layer1.0", "layer1.1", "layer2.0")
KINDS = {
    "LikeResNet": (RESNET, (2, 4)),
    "WithDict": (RESNET, (2, 4)),
    "LikeViT": (tuple(f"blocks.{number}" for number in range(5)), (2, 3, 5, 6)),
}


@dataclass(frozen=True)
class Task:
    num_classes: int = NUM_CLASSES
    image_shape: tuple[int, int, int] = (1, 12, 12)
    num_train: int = 500


def own(table: str, network: str, *settings: str) -> Experiment:
    kept = [f"{table}.model=foreign_networks:{network}", f"{table}.options={{}}", *settings]
    return load(None, kept)


@pytest.mark.parametrize("network", KINDS)
@pytest.mark.parametrize("table", ["teacher", "student"])
def test_taps_and_stages_are_found_and_listed(table: str, network: str) -> None:
    before = own(table, network)
    found = Networks.resolve(before, Task()).experiment
    taps, ends = KINDS[network]
    assert getattr(found, table).taps == taps
    assert getattr(found, table).stage_ends == ends
    (line,) = describe_taps(before, found)
    assert line.startswith(f"{table}.taps, found by running the network: {taps[0]}, ")
    assert line.endswith(f"; {len(ends)} stages")


def test_every_start_finds_the_same_and_what_is_listed_stays() -> None:
    before = own("teacher", "LikeResNet")
    found = with_found_taps(before, Task())
    assert with_found_taps(before, Task()) == found
    assert with_found_taps(found, Task()) is found
    listed = own("teacher", "LikeResNet", "teacher.taps=['layer1.1']")
    assert with_found_taps(listed, Task()) is listed
    assert Networks.resolve(listed, Task()).teacher.stage_ends == (1, 2), "every tap is a stage"


def test_a_network_that_names_its_taps_is_not_searched() -> None:
    narrow = load(None, ["student.model=narrow_student:Narrow", "student.options={}"])
    for before in (Experiment(), narrow):
        assert with_found_taps(before, Task()) is before


def test_stages_of_found_taps_are_what_methods_compare() -> None:
    student = ("student.model=foreign_networks:LikeResNet", "student.options={}")
    settings = ("search.methods=['fitnet', 'kr']", "distill.granularity=stage")
    networks = Networks.resolve(own("teacher", "LikeResNet", *student, *settings), Task())
    networks.check()
    assert networks.teacher.stage_ends == (2, 4)
    assert networks.teacher.stage_paths == ("layer1.1", "layer2.0")


@pytest.mark.parametrize("method", ["kd", "plain", "kr", "pkt"])
def test_a_student_needs_taps_only_where_a_method_reads_them(method: str) -> None:
    student = own("student", "Flat", f"distill.method={method}", f"search.methods=['{method}']")
    if method in ("kr", "pkt"):
        with pytest.raises(UserError, match=r"^student\.taps: no block was found"):
            Networks.resolve(student, Task())
        return
    networks = Networks.resolve(student, Task())
    assert networks.experiment.student.taps == ()
    networks.check()
    with pytest.raises(UserError, match=r"^student\.taps: no block was found"):
        with_found_taps(with_values(student, {"search.methods": ["kd", "kr"]}, "test"), Task())


def test_students_of_a_ladder_each_get_their_own() -> None:
    students = [
        {"name": "small", "model": "foreign_networks:LikeResNet", "width": 2},
        {"name": "listed", "model": "foreign_networks:LikeResNet", "width": 3, "taps": ["layer1"]},
        {"name": "zoo", "model": "resnet", "width": 2},
    ]
    before = with_values(Experiment(), {"ladder.students": students}, "test")
    small, listed, zoo = with_found_taps(before, Task()).ladder.students
    assert small.taps == RESNET
    assert listed.taps == ("layer1",)
    assert zoo == before.ladder.students[2]


def test_where_nothing_is_found_the_setting_is_named() -> None:
    before = load(None, ["teacher.model=odd_networks:OneLayer", "teacher.options={}"])
    with pytest.raises(UserError, match=r"^teacher\.taps: no block was found"):
        with_found_taps(before, Task(image_shape=(1, 8, 8)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("teacher.stage_ends=[1, 2]", "list taps as well"),
        ("teacher.taps=['a', 'b'],teacher.stage_ends=[2, 2, 3]", "must rise and end with 3"),
        ("teacher.taps=['a', 'b'],teacher.stage_ends=[1, 2]", "must rise and end with 3"),
        ("student.taps=['a'],student.stage_ends=[0, 2]", "greater than"),
    ],
)
def test_stages_that_cannot_be(settings: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(None, re.split(r",(?=teacher|student)", settings))


def test_experiments_of_before_keep_their_fingerprints() -> None:
    plain = Experiment()
    assert with_values(plain, {"student.stage_ends": ()}, "test").fingerprint() == (
        plain.fingerprint()
    )
    assert "stage_ends" not in plain.teacher.identity()
