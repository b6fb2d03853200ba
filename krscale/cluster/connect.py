"""Joining or starting Ray, and querying whether it can ever give what a run needs."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from krscale.config import ClusterConfig
from krscale.errors import UserError
from krscale.redaction import redact

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
    # Trials without a GPU must not have CUDA_VISIBLE_DEVICES emptied behind the user's back.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
POLL_SECONDS = 1.0

_private = False


def connect(config: ClusterConfig) -> None:
    """Join the cluster that `cluster.address` or `RAY_ADDRESS` names, or start a private one.

    Raises:
        UserError: If no cluster answers at that address.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        return
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {}
    global _private
    _private = address == "local"
    if _private:
        options = {"num_cpus": config.num_cpus or None, "include_dashboard": False}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **options)
    except (ConnectionError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            redact(f"cluster.address: no Ray cluster at {address!r}: {first}")
        ) from None


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
    raise UserError(f"{where}: this needs {needs} {_describe_nodes(resources)}.")


@contextmanager
def _asked_for(resources: Mapping[str, float], count: int) -> Iterator[None]:
    """Let an autoscaler see the demand; given up at the end, whether nodes came or not."""
    demand = placement_group([dict(resources)] * count, strategy="PACK")
    try:
        yield
    finally:
        remove_placement_group(demand)


def _describe_nodes(names: Iterable[str]) -> str:
    """Say what the nodes have of the resources, alike ones together."""
    nodes = Counter(
        " and ".join(f"{entry['Resources'].get(name, 0.0):g} {name}" for name in names)
        for entry in ray.nodes()  # type: ignore[no-untyped-call]
        if entry["Alive"]
    )
    return ", ".join(
        f"{count} {'node' if count == 1 else 'nodes'} of {has}" for has, count in nodes.items()
    )


def num_slots(resources: Mapping[str, float]) -> int:
    """Return how many trials with these resources fit into the connected cluster as it is now.

    Counted node by node: a trial cannot use the halves of two nodes.
    """
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    # Ray counts in ten-thousandths; a quotient of floats may fall just short of a whole number.
    return sum(
        int(min(node.get(name, 0.0) / amount + 1e-6 for name, amount in resources.items()))
        for node in (entry["Resources"] for entry in nodes if entry["Alive"])
    )


def can_grow() -> bool:
    """Return whether nodes may join: not in a private Ray of one node, started by `connect`."""
    return not _private
