"""How much of a cluster trials can use."""

from typing import Any

import pytest
import ray

from krscale.cluster import num_places


def node(*, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


def test_a_trial_has_its_place_on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node(CPU=3.0), node(CPU=3.0, GPU=1.0), node(alive=False, CPU=64.0, GPU=8.0)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert num_places({"CPU": 2.0}) == 2, "not three from the halves of two nodes, nor the dead"
    assert num_places({"CPU": 1.0, "GPU": 0.5}) == 2, "only one node has a GPU"
    assert num_places({"CPU": 4.0}) == 0
