"""Joining or starting Ray, and checking whether it can ever give what a run needs."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from ray._private import ray_constants, services
from ray.util.placement_group import placement_group, remove_placement_group

from krscale import allocator
from krscale.cluster.access import check_answers, joining, use_own_token
from krscale.cluster.address import PRIVATE, ray_address
from krscale.config import ClusterConfig
from krscale.errors import UserError, first_line
from krscale.interruption import leave_early_if, listen_again, own_exit_as_interrupt

SETTINGS = {
    # Our listeners record trials; Tune need not write copies of every result.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Our own live view takes the place of Tune's tables.
    "RAY_AIR_NEW_OUTPUT": "0",
    # The journal is the only truth; Tune's snapshot is never read.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # Ctrl-C must reach our own code, which leaves the journal as it is; Tune would end the trials.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A report of Ray Train waits for the controller's poll, every 2 s by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # A Ray started here would start idle workers beside those that actors bring up for themselves:
    # twice the imports on the same cores, most of a second of every start.
    "RAY_prestart_worker_first_driver": "0",
    # On a machine that is busy, Ray's first process was there after more than the 30 s it is given.
    "RAY_gcs_server_port_wait_time_s": "120",
    # Trials without a GPU must not have CUDA_VISIBLE_DEVICES emptied behind the user's back.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Threads of a trial that wait for each other sleep (see `cli.common.run_command`).
    "OMP_WAIT_POLICY": "passive",
}
WORKERS_TOO = ("OMP_WAIT_POLICY", *allocator.VARIABLES)
"""Settings of this process that its workers on a cluster need when they start. Those of a private
Ray inherit the whole environment."""
POLL_SECONDS = 1.0
DYING_SECONDS = 0.5
"""What Ray's processes, told to end together with this one, may need for it."""

_ONE_MACHINE = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR

_private = False


def connect(config: ClusterConfig) -> None:
    """Join the cluster that `cluster.address` or `RAY_ADDRESS` names, or start a private one.

    Raises:
        UserError: If no cluster answers at that address, it demands a token that is not here, or
            Ray cannot be started on this machine.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        return
    with allocator.set_for_children():
        _connect(config)


def _connect(config: ClusterConfig) -> None:
    address = ray_address(config)
    global _private
    _private = address == PRIVATE
    if _private:
        use_own_token()
        with _own_process_groups(), _on_loopback(), _starting():
            _init(address, num_cpus=config.num_cpus or None, include_dashboard=False)
        leave_early_if(_head_is_gone)
        return
    where = "cluster.address" if config.address else "RAY_ADDRESS"
    check_answers(address, where)
    with joining(address, where):
        _init(address, runtime_env={"env_vars": _worker_variables()})


@contextmanager
def _own_process_groups() -> Iterator[None]:
    """Let Ray start each of its processes in a process group of its own.

    A signal to this process's group (a closed terminal, `timeout`, a batch system) then reaches
    this process alone, which records what it has and ends Ray. Were Ray's processes to end first,
    Ray would end this one with them, in the middle of that; Ray has no option for it. On Linux they
    still end with this process, however it ends.
    """
    if os.name != "posix":
        yield
        return
    popen = services.ConsolePopen
    setattr(services, "ConsolePopen", partial(popen, process_group=0))  # noqa: B010 - a type
    try:
        yield
    finally:
        setattr(services, "ConsolePopen", popen)  # noqa: B010


@contextmanager
def _starting() -> Iterator[None]:
    """Turn what `ray.init` raises, when Ray's processes do not come up, into one error."""
    try:
        yield
    except (KeyboardInterrupt, UserError):
        raise
    except Exception as error:
        # Ray raises bare exceptions here, and RuntimeError, ValueError and OSError.
        cause = first_line(error)
        raise UserError(
            f"Ray could not be started on this machine: {cause} A machine that is short of memory "
            "or busy with other work may be the reason; the same command starts again."
        ) from error


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray start its processes so that they listen on 127.0.0.1, and not on all addresses.

    Nobody else is to join a private Ray. It is the way in which Ray starts by itself on Windows and
    macOS; there is a variable for it, which Ray reads when it is imported, and its processes read,
    too. With `ray.init(_node_ip_address="127.0.0.1")` it takes the machine's own address all the
    same.
    """
    given, elsewhere = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(_ONE_MACHINE)
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[_ONE_MACHINE] = "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = given
        if elsewhere is None:
            del os.environ[_ONE_MACHINE]
        else:
            os.environ[_ONE_MACHINE] = elsewhere


def _head_is_gone() -> bool:
    """Return whether processes of the private Ray have died.

    A signal to all processes of a job or container ends them as well. Ray then waits at exit for a
    minute for the answer of a process that is gone, with Python's lock held, and exits with 1.
    """
    node: Any = ray._private.worker._global_node  # None after `ray.shutdown`
    if node is None:
        return False
    deadline = time.monotonic() + DYING_SECONDS
    while not node.dead_processes():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _init(address: str, **options: Any) -> None:
    """Call `ray.init`, which replaces the handlers of signals by its own."""
    try:
        with own_exit_as_interrupt():
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **options)
    finally:
        listen_again()


def _worker_variables() -> dict[str, str]:
    """Return what workers get of this process's environment; Ray refuses what a job sets itself."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    given = (job.get("runtime_env") or {}).get("env_vars") or {}
    names = [name for name in WORKERS_TOO if name in os.environ and name not in given]
    return {name: os.environ[name] for name in names}


def require(
    resources: Mapping[str, float], config: ClusterConfig, where: str, num_slots_needed: int = 1
) -> None:
    """Wait until the cluster has these resources, free or not; give up with one error.

    A cluster that grows is asked to: nodes join for what is waiting.

    Args:
        resources: What one worker or trial reserves, on one node, e.g. `{"CPU": 4.0}`.
        config: How long to wait (`cluster.wait_seconds`) for nodes that are still joining.
        where: The config key that asked for so much.
        num_slots_needed: How many of them must run at the same time.

    Raises:
        UserError: If the cluster stays too small; says what its nodes have.
    """
    if num_slots(resources) >= num_slots_needed:
        return
    if can_grow():
        deadline = time.monotonic() + config.wait_seconds
        with _asked_for(resources, num_slots_needed):
            while time.monotonic() < deadline:
                if num_slots(resources) >= num_slots_needed:
                    return
                time.sleep(POLL_SECONDS)
    each = " and ".join(f"{amount:g} {name}" for name, amount in resources.items())
    if num_slots_needed == 1:
        needs = f"{each} on one node; the cluster has"
    else:
        needs = (
            f"{num_slots_needed} times {each}, each on one node; the cluster has room for "
            f"{num_slots(resources)}, on"
        )
    raise UserError(f"{where}: this needs {needs} {describe_nodes(resources)}.")


@contextmanager
def _asked_for(resources: Mapping[str, float], count: int) -> Iterator[None]:
    """Let an autoscaler see the demand; given up at the end, whether nodes came or not."""
    demand = placement_group([dict(resources)] * count, strategy="PACK")
    try:
        yield
    finally:
        remove_placement_group(demand)


def describe_nodes(names: Iterable[str]) -> str:
    """Say what the nodes have of the resources, alike ones together."""
    nodes = Counter(
        " and ".join(f"{entry['Resources'].get(name, 0.0):g} {name}" for name in names)
        for entry in ray.nodes()  # type: ignore[no-untyped-call]
        if entry["Alive"]
    )
    return ", ".join(
        f"{count} {'node' if count == 1 else 'nodes'} of {has}" for has, count in nodes.items()
    )


def num_slots(resources: Mapping[str, float], num_workers: int = 1) -> int:
    """Return how many trials with these resources fit into the connected cluster as it is now.

    Counted node by node: a worker cannot use the halves of two nodes.

    Args:
        resources: What one worker reserves.
        num_workers: Workers of a trial, which may be on several nodes.
    """
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    # Ray counts in ten-thousandths; a quotient of floats may fall just short of a whole number.
    places = sum(
        int(min(node.get(name, 0.0) / amount + 1e-6 for name, amount in resources.items()))
        for node in (entry["Resources"] for entry in nodes if entry["Alive"])
    )
    return places // num_workers


def is_private() -> bool:
    """Return whether the Ray that this process has joined was started by it, on this machine."""
    return _private


def can_grow() -> bool:
    """Return whether nodes may join: not in a private Ray of one node, started by `connect`."""
    return not _private
