"""As many trials are handed out as there are places, and no more."""

from collections.abc import Mapping

import pytest

from krscale.search.on_ray import slots
from krscale.search.on_ray.slots import REFRESH_SECONDS, Slots


class Cluster:
    """A fake cluster: its number of places, how often it was read, and the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, can_grow: bool) -> None:
        self.size, self.looks, self.now = 2, 0, 100.0
        monkeypatch.setattr(slots, "num_slots", self.num_slots)
        monkeypatch.setattr(slots, "can_grow", lambda: can_grow)
        self.slots = Slots({"CPU": 1.0}, clock=lambda: self.now)

    def num_slots(self, resources: Mapping[str, float], num_workers: int) -> int:
        self.looks += 1
        return self.size


def test_every_place_gets_a_trial_at_once_and_none_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    has_room = Cluster(monkeypatch, can_grow=False).slots.has_room
    assert has_room(num_begun=0, num_waiting=0)
    assert has_room(num_begun=0, num_waiting=1), "the others need not have begun"
    assert has_room(num_begun=1, num_waiting=0)
    assert not has_room(num_begun=2, num_waiting=0)
    assert not has_room(num_begun=1, num_waiting=1)


def test_one_waits_where_that_makes_the_cluster_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    has_room = Cluster(monkeypatch, can_grow=True).slots.has_room
    assert has_room(num_begun=2, num_waiting=0)
    assert not has_room(num_begun=2, num_waiting=1)
    assert not has_room(num_begun=1, num_waiting=1), "it would take the place of who waits"


def test_a_trial_is_asked_for_where_there_is_no_place_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, can_grow=True)
    cluster.size = 0
    assert cluster.slots.has_room(num_begun=0, num_waiting=0)


def test_nodes_that_join_are_seen_soon_and_not_looked_for_at_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(monkeypatch, can_grow=False)
    assert not cluster.slots.has_room(2, 0)
    cluster.size = 3
    assert not cluster.slots.has_room(2, 0)
    assert cluster.looks == 1
    cluster.now += REFRESH_SECONDS
    assert cluster.slots.has_room(2, 0)


@pytest.fixture
def varying(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Trials of one to three workers on a cluster that has room for six."""
    cluster = Cluster(monkeypatch, can_grow=True)
    cluster.slots = Slots({"CPU": 1.0}, 1, 3, lambda: cluster.now)
    cluster.size = 6
    return cluster


@pytest.mark.parametrize(
    ("begun", "waiting", "expected"),
    [
        ([], [], 3),
        ([3], [], 3),
        ([], [3], 3),
        ([3, 3], [], 0),
        ([3], [3], 0),
        ([3, 1], [], 2),
        ([3, 2], [], 1),
        ([3, 3, 1], [], 0),  # a node is gone
    ],
)
def test_a_trial_takes_the_workers_that_there_are_between_least_and_most(
    varying: Cluster, begun: list[int], waiting: list[int], expected: int
) -> None:
    assert varying.slots.next_size(begun, waiting) == expected


def test_where_there_is_no_place_one_trial_asks_for_the_least(varying: Cluster) -> None:
    varying.size = 0
    assert varying.slots.next_size([], []) == 1
    assert varying.slots.next_size([], [1]) == 0


def test_only_what_waits_in_vain_and_could_be_smaller_is_oversized(varying: Cluster) -> None:
    oversized = varying.slots.oversized
    assert not oversized(3, [3], []), "there is room, and it starts"
    varying.size, varying.now = 4, varying.now + REFRESH_SECONDS
    assert oversized(3, [3], [])
    assert not oversized(3, [3], [1]), "no place at all is left: it waits for one"
    assert not oversized(1, [3], [])


def test_a_number_that_does_not_vary_is_never_oversized(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, can_grow=True)
    cluster.slots = Slots({"CPU": 1.0}, 2, 2, lambda: cluster.now)
    assert cluster.slots.next_size([2], []) == 2
    cluster.size = 1
    assert not cluster.slots.oversized(2, [], [])
