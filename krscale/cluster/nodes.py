"""Check that every node of a cluster can use the storage and has the same package versions."""

from __future__ import annotations

import tempfile
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from krscale.cluster.address import starts_private
from krscale.cluster.connect import connect, is_private
from krscale.cluster.versions import other_versions, own_versions
from krscale.config import Experiment
from krscale.errors import UserError
from krscale.storage.address import is_uri, mark
from krscale.storage.objects import Objects
from krscale.storage.opening import open_storage, probe

PROBE_SECONDS = 120.0
"""Limit for a node to start a worker, import the packages and answer."""


def reach_storage(experiment: Experiment, *, on_nodes: bool = True) -> None:
    """Refuse a storage that this machine or a node of the cluster cannot read and write.

    A folder must be shared: the other nodes of the cluster look for it. A cluster whose only
    node is this machine is not checked.

    Args:
        experiment: Names the storage, and the cluster to run on.
        on_nodes: Whether other nodes take part. If not, only this machine uses a folder,
            and the cluster is not checked for it.

    Raises:
        UserError: With a list of nodes and the problem on each.
    """
    storage, cache_gb = experiment.storage_path, experiment.cluster.cache_gb
    if is_uri(storage):
        open_storage(storage, cache_gb)
        probe(storage)
    elif not on_nodes:
        return
    if starts_private(experiment.cluster):
        return
    connect(experiment.cluster)
    if is_private():
        return
    nodes = {
        str(node["NodeID"]): str(node["NodeManagerAddress"])
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    }
    if is_uri(storage):
        with _object_to_find(storage) as name:
            _check_nodes(nodes, storage, name)
    elif set(nodes) != {ray.get_runtime_context().get_node_id()}:
        with _file_to_find(storage) as name:
            _check_nodes(nodes, storage, name)


@contextmanager
def _file_to_find(folder: str) -> Iterator[str]:
    """Make a file in a storage folder; yield its name, or an empty name if that fails.

    The code that later uses the folder reports the error on this machine.
    """
    name = f".probe-{uuid.uuid4().hex}"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / name).touch(exist_ok=False)
    except OSError:
        yield ""
        return
    try:
        yield name
    finally:
        with suppress(OSError):
            (Path(folder) / name).unlink()


@contextmanager
def _object_to_find(storage: str) -> Iterator[str]:
    """Make an object in a URI storage; yield its key."""
    objects, key = Objects.open(storage), f".probe/{uuid.uuid4().hex}"
    objects.write(key, b"")
    try:
        yield key
    finally:
        objects.delete(key)


def _check_nodes(nodes: Mapping[str, str], storage: str, name: str) -> None:
    """Check every node.

    Args:
        nodes: Id -> address.
        storage: A URI or a folder.
        name: Name of an object or file that the command made there; empty if it could not make one.

    Raises:
        UserError: As for `reach_storage`.
    """
    own = own_versions()
    task = ray.remote(_look)
    asked = {
        task.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote(storage, name): node
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
    """Return the problems of a node, one sentence each."""
    try:
        found, problem = ray.get(reference, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return [f"no answer within {PROBE_SECONDS:.0f} s"]
    except ray.exceptions.RayError as error:
        return [(str(error).strip().splitlines() or [type(error).__name__])[-1]]
    return list(filter(None, (other_versions(found, own), problem)))


def _look(storage: str, name: str) -> tuple[dict[str, str], str]:
    """Return, on a node, its versions and the problem with the storage there, or no problem."""
    try:
        if is_uri(storage):
            mark(storage)
        probe(storage)
        wrong = _wrong_with_objects if is_uri(storage) else _wrong_with_folder
        return own_versions(), wrong(storage, name) if name else ""
    except UserError as error:
        return own_versions(), str(error)


def _wrong_with_objects(storage: str, key: str) -> str:
    """Return, on a node, the problem if a URI lacks an object that the command has made."""
    if Objects.open(storage).info(key) is not None:
        return ""
    return (
        f"storage_path: {storage}: it is not the storage that the command writes to: every machine "
        f"has its own. With several nodes it has to be one that all of them reach "
        f"(s3://bucket/prefix), or a folder that they share"
    )


def _wrong_with_folder(storage: str, name: str) -> str:
    """Return, on a node, the problem with a storage folder in which the command made a file."""
    folder = Path(storage)
    if not (folder / name).is_file():
        return (
            f"storage_path: {folder}: it is not the folder that the command writes to. With "
            f"several nodes it has to be one that all of them share, or a URI (s3://bucket/prefix)"
        )
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f"{name}-"):
            return ""
    except OSError as error:
        return f"storage_path: {folder}: cannot write there: {error.strerror or error}"
