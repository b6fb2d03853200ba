"""Which Ray a run joins, known without importing Ray."""

from __future__ import annotations

import os
import sys

from krscale.config import ClusterConfig

PRIVATE = "local"
"""The address of a Ray that is started on this machine for one run."""


def ray_address(config: ClusterConfig) -> str:
    """Return the address of the cluster to join, `PRIVATE` where a Ray is started here."""
    return config.address or os.environ.get("RAY_ADDRESS") or PRIVATE


def starts_private(config: ClusterConfig) -> bool:
    """Return whether a run will start a Ray here, rather than use one that is there already."""
    ray = sys.modules.get("ray")
    is_joined = ray is not None and bool(ray.is_initialized())
    return ray_address(config) == PRIVATE and not is_joined
