"""Workers on nodes that join after the start compare their versions with those of the command."""

from __future__ import annotations

import platform
import re

import pytest

from krscale.cluster import versions
from krscale.cluster.train import _worker
from krscale.cluster.versions import own_versions, refuse_other_versions
from krscale.config import load
from krscale.errors import NodeError
from krscale.search.on_ray.rank import Rank
from krscale.search.on_ray.trial import StudentTrial


def test_the_same_versions_are_no_error() -> None:
    refuse_other_versions(own_versions())
    assert set(own_versions()) == {"Python", "krscale", "ray", "torch", "pyarrow"}


def test_a_worker_with_another_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is to do: each kind of worker compares before its own work."""
    here, of_worker = {"torch": "2.13", "ray": "2.60"}, {"torch": "2.5", "ray": "2.60"}
    monkeypatch.setattr(versions, "own_versions", lambda: of_worker)
    expected = re.escape(f"{platform.node()} has other versions than here: torch 2.5 (here 2.13).")
    none = object()
    with pytest.raises(NodeError, match=expected):
        refuse_other_versions(here)
    with pytest.raises(NodeError, match=expected):
        StudentTrial.__new__(StudentTrial).setup({}, load(None, []), none, versions=here)  # type: ignore[arg-type]
    with pytest.raises(NodeError, match=expected):
        Rank(load(None, []), none, {}, here)  # type: ignore[arg-type]
    with pytest.raises(NodeError, match=expected):
        _worker({"versions": here})


def test_builds_for_other_hardware_are_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for build in ("+cpu", "+cu130", ""):
        monkeypatch.setattr(versions, "version", lambda _, build=build: f"2.13.0{build}")
        found.append(versions.own_versions())
    assert found[0] == found[1] == found[2]
    assert found[0]["torch"] == "2.13.0"
