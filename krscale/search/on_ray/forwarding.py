"""Keep secrets out of the driver's environment variables that Tune forwards to workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray.tune.execution import class_cache

from krscale.redaction import may_name_a_secret


@contextmanager
def no_secrets_forwarded() -> Iterator[None]:
    """Let Tune forward its usual variables in this block, except those that may hold secrets.

    Tune forwards AWS keys to every worker in its runtime environment, and Ray writes runtime
    environments to logs that all users of a machine can read. No trial needs the keys: data,
    teacher and store are read from the storage, and only the driver uses MLflow. The workers of a
    private Ray still inherit them from the driver, in memory that only its user can read; Ray has
    no option against that.
    """
    names: set[str] = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in names if not may_name_a_secret(name)}
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE = names
