"""Whether every node of a cluster can work with a storage that is a URI: asked before the work."""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from krscale.cluster.connect import connect, is_private
from krscale.config import Experiment
from krscale.errors import UserError
from krscale.storage.address import is_uri
from krscale.storage.opening import open_storage, probe

_PACKAGES = ("krscale", "ray", "torch", "pyarrow")
PROBE_SECONDS = 120.0
"""For a node to start a worker, import and answer."""


def reach_storage(experiment: Experiment) -> None:
    """Refuse a storage that this machine or a node of the cluster cannot read and write.

    Nothing is done for a storage that is a folder.

    Args:
        experiment: Its storage, and the cluster that it runs on.

    Raises:
        UserError: Listing nodes, each with what is wrong there.
    """
    storage, cache_gb = experiment.storage_path, experiment.cluster.cache_gb
    if not is_uri(storage):
        return
    open_storage(storage, cache_gb)
    probe(storage)
    if (experiment.cluster.address or os.environ.get("RAY_ADDRESS") or "local") == "local":
        return
    connect(experiment.cluster)
    if not is_private():
        _check_nodes(storage)


def _check_nodes(storage: str) -> None:
    own = _versions()
    task = ray.remote(_look)
    nodes = {
        str(node["NodeID"]): str(node["NodeManagerAddress"])
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    }
    asked = {
        task.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote(storage): node
        for node in nodes
    }
    ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_SECONDS)
    problems = defaultdict[str, list[str]](list)
    for reference, node in asked.items():
        for problem in _problems(reference, own):
            problems[problem].append(f"{nodes[node]} ({node[:8]})")
    if problems:
        lines = [f"  {', '.join(sorted(where))}: {what}" for what, where in problems.items()]
        raise UserError("cluster: nodes cannot work on this run:\n" + "\n".join(lines))


def _problems(reference: Any, own: Mapping[str, str]) -> list[str]:
    """Return what is wrong with a node, a sentence each."""
    try:
        found, problem = ray.get(reference, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return [f"no answer within {PROBE_SECONDS:.0f} s"]
    except ray.exceptions.RayError as error:
        return [(str(error).strip().splitlines() or [type(error).__name__])[-1]]
    other = [f"{name} {found[name]} (here {own[name]})" for name in own if found[name] != own[name]]
    return [*([f"other versions than here: {', '.join(other)}"] if other else []),
            *([problem] if problem else [])]  # fmt: skip


def _look(storage: str) -> tuple[dict[str, str], str]:
    """Return, on a node, its versions and what is wrong with the storage there."""
    try:
        probe(storage)
    except UserError as error:
        return _versions(), str(error)
    return _versions(), ""


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
