"""How much of a cluster trials can use."""

from typing import Any

import pytest
import ray

from krscale.cluster import connect as cluster
from krscale.cluster.connect import num_slots, require
from krscale.config import ClusterConfig
from krscale.errors import UserError


def node(*, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


def test_a_trial_has_its_place_on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node(CPU=3.0), node(CPU=3.0, GPU=1.0), node(alive=False, CPU=64.0, GPU=8.0)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert num_slots({"CPU": 2.0}) == 2, "not three from the halves of two nodes, nor the dead"
    assert num_slots({"CPU": 1.0, "GPU": 0.5}) == 2, "only one node has a GPU"
    assert num_slots({"CPU": 4.0}) == 0


def test_what_no_node_can_hold_is_refused_at_once_where_none_can_join(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        ray, "nodes", lambda: [node(CPU=3.0), node(CPU=3.0), node(CPU=2.0, GPU=1.0)]
    )
    monkeypatch.setattr(cluster, "can_grow", lambda: False)
    with pytest.raises(UserError) as refused:
        require({"CPU": 4.0}, ClusterConfig(), "search.cpus_per_trial")
    assert str(refused.value) == (
        "search.cpus_per_trial: this needs 4 CPU on one node; the cluster has "
        "2 nodes of 3 CPU, 1 node of 2 CPU."
    )
    with pytest.raises(
        UserError, match=r"train.num_workers: .* 2 times 1 CPU and 1 GPU, .* room for 1, on"
    ):
        require({"CPU": 1.0, "GPU": 1.0}, ClusterConfig(), "train.num_workers", 2)
    require({"CPU": 1.0}, ClusterConfig(), "train.num_workers", 8)


def test_a_cluster_that_grows_is_asked_for_nodes_until_they_have_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes, asked, given_up = [node(CPU=1.0)], [], []

    def ask(bundles: list[dict[str, float]], strategy: str) -> str:
        del strategy
        asked.extend(bundles)
        return "demand"

    def wait(seconds: float) -> None:
        del seconds
        nodes.append(node(CPU=4.0))

    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(cluster, "can_grow", lambda: True)
    monkeypatch.setattr(cluster, "placement_group", ask)
    monkeypatch.setattr(cluster, "remove_placement_group", given_up.append)
    monkeypatch.setattr(cluster.time, "sleep", wait)
    require({"CPU": 4.0}, ClusterConfig(), "search.cpus_per_trial", 2)
    assert len(nodes) == 3
    assert asked == [{"CPU": 4.0}] * 2
    assert given_up == ["demand"]
    with pytest.raises(UserError, match="3 times 8 CPU, each on one node"):
        require({"CPU": 8.0}, ClusterConfig(wait_seconds=1e-3), "search.cpus_per_trial", 3)
    assert given_up == ["demand"] * 2
