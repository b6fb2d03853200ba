"""Trials are handed out for the places that there are, and for no more."""

from collections.abc import Mapping

import pytest

from krscale.search.on_ray import slots
from krscale.search.on_ray.slots import REFRESH_SECONDS, Slots


class Cluster:
    """So many places, looked at so often, at such a time."""

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
