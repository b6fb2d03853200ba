"""Join or start Ray, and check whether it can ever provide what a run needs."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    # Our own live view replaces Tune's tables.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Only the journal counts; Tune's snapshot is never read.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # Ctrl-C must reach our own code, which keeps the journal unchanged; Tune would end the trials.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A report of Ray Train waits for the controller's poll, every 2 s by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # A Ray started here would start idle workers in addition to those that actors start themselves:
    # twice the imports on the same cores, which takes most of a second at every start.
    "RAY_prestart_worker_first_driver": "0",
    # On a busy machine, Ray's first process took longer to start than the default limit of 30 s.
    "RAY_gcs_server_port_wait_time_s": "120",
    # Ray must not empty the CUDA_VISIBLE_DEVICES of trials without a GPU.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Threads of a trial sleep while they wait for each other (see `cli.common.run_command`).
    "OMP_WAIT_POLICY": "passive",
}
WORKERS_TOO = ("OMP_WAIT_POLICY", *allocator.VARIABLES)
"""Settings of this process that its workers on a cluster need when they start. The workers of a
private Ray inherit the whole environment."""
POLL_SECONDS = 1.0
MOST_ASKED = 10_000
"""Largest number of places that a cluster is asked for; Ray would need memory for each of them."""
START_SECONDS = 120.0
"""Limit for the node of a private Ray to start."""
DYING_SECONDS = 0.5
"""Limit for Ray's processes to end, if they are told to end together with this process."""

_ONE_MACHINE = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR

_private = False


def connect(config: ClusterConfig) -> None:
    """Join the cluster that `cluster.address` or `RAY_ADDRESS` names, or start a private one.

    Raises:
        UserError: If no cluster answers at that address, if it demands a token that is missing or
            wrong, or if Ray cannot be started on this machine.
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
        with _own_process_groups(), _on_loopback(), _starting(), _with_time_to_start():
            _init(address, num_cpus=config.num_cpus or None, include_dashboard=False)
        leave_early_if(_head_is_gone)
        return
    where = "cluster.address" if config.address else "RAY_ADDRESS"
    check_answers(address, where)
    with joining(address, where):
        _init(address, runtime_env={"env_vars": _worker_variables()})


@contextmanager
def _own_process_groups() -> Iterator[None]:
    """Let Ray start each of its processes in a separate process group.

    A signal to this process's group (a closed terminal, `timeout`, a batch system) then reaches
    only this process, which records its results and ends Ray. If Ray's processes ended first, Ray
    would end this process before it has recorded them; Ray has no option against this. On Linux,
    Ray's processes still end with this process, however it ends.
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
    """Turn any exception of `ray.init`, when Ray's processes do not start, into one error."""
    try:
        yield
    except (KeyboardInterrupt, UserError):
        raise
    except Exception as error:
        # Ray raises bare exceptions here, as well as RuntimeError, ValueError and OSError.
        cause = first_line(error)
        raise UserError(
            f"Ray could not be started on this machine: {cause} A machine that is short of memory "
            "or busy with other work may be the reason; the same command starts again."
        ) from error


@contextmanager
def _with_time_to_start() -> Iterator[None]:
    """Let Ray wait `START_SECONDS` for its own node, in place of 30 s.

    A busy machine, or one that starts Ray for the first time, takes longer than that, and Ray has
    no setting for it: it asks for the node until the limit is past.
    """
    get_node: Callable[..., Any] = services.get_node
    deadline = time.monotonic() + START_SECONDS

    def wait(*arguments: Any) -> Any:
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:  # it is not there yet
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    services.get_node = wait
    try:
        yield
    finally:
        services.get_node = get_node


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray's processes listen on 127.0.0.1 only, not on all addresses.

    No other machine should join a private Ray. On Windows and macOS Ray does this by default. It is
    controlled by a variable that Ray reads when it is imported and that its processes read, too.
    `ray.init(_node_ip_address="127.0.0.1")` does not help: Ray uses the machine's own address.
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

    A signal to all processes of a job or container also ends Ray's processes. At exit, Ray then
    holds Python's lock, waits a minute for an answer from an ended process, and exits with 1.
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
    """Call `ray.init`, then restore our signal handlers, which it replaces by its own."""
    try:
        with own_exit_as_interrupt():
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **options)
    finally:
        listen_again()


def _worker_variables() -> dict[str, str]:
    """Return the variables to pass on to workers; Ray refuses those that a job sets itself."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    given = (job.get("runtime_env") or {}).get("env_vars") or {}
    names = [name for name in WORKERS_TOO if name in os.environ and name not in given]
    return {name: os.environ[name] for name in names}


def require(
    resources: Mapping[str, float], config: ClusterConfig, where: str, num_slots_needed: int = 1
) -> None:
    """Wait until the cluster has these resources, free or not; raise an error if it never does.

    A cluster that can grow is asked to: nodes join for requests that are waiting.

    Args:
        resources: Resources that one worker or trial reserves on one node, e.g. `{"CPU": 4.0}`.
        config: How long to wait (`cluster.wait_seconds`) for nodes that are still joining.
        where: The config key that requires these resources.
        num_slots_needed: How many workers or trials must run at the same time.

    Raises:
        UserError: If the cluster stays too small, with the resources of its nodes.
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
    """Show the demand to an autoscaler; withdraw it at the end, whether nodes came or not."""
    demand = placement_group([dict(resources)] * min(count, MOST_ASKED), strategy="PACK")
    try:
        yield
    finally:
        remove_placement_group(demand)


def describe_nodes(names: Iterable[str]) -> str:
    """Describe the nodes by these resources, and count equal nodes together."""
    nodes = Counter(
        " and ".join(f"{entry['Resources'].get(name, 0.0):g} {name}" for name in names)
        for entry in ray.nodes()  # type: ignore[no-untyped-call]
        if entry["Alive"]
    )
    return ", ".join(
        f"{count} {'node' if count == 1 else 'nodes'} of {has}" for has, count in nodes.items()
    )


def num_slots(resources: Mapping[str, float], num_workers: int = 1) -> int:
    """Return how many trials with these resources fit into the connected cluster at present.

    Each node is counted separately, since a worker cannot use parts of two nodes.

    Args:
        resources: Resources that one worker reserves.
        num_workers: Number of workers of a trial; they may be on several nodes.
    """
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    # Ray counts in ten-thousandths; a quotient of floats may fall just short of a whole number.
    places = sum(
        int(min(node.get(name, 0.0) / amount + 1e-6 for name, amount in resources.items()))
        for node in (entry["Resources"] for entry in nodes if entry["Alive"])
    )
    return places // num_workers


def is_private() -> bool:
    """Return whether this process started, on this machine, the Ray that it is connected to."""
    return _private


def can_grow() -> bool:
    """Return whether nodes may join: not in a private, one-node Ray started by `connect`."""
    return not _private
