"""What Ray Tune hands on of the driver's environment to the workers of trials: no secret."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray.tune.execution import class_cache

from krscale.redaction import may_name_a_secret


@contextmanager
def no_secrets_forwarded() -> Iterator[None]:
    """Let Tune forward in this block what it does, but for variables that may hold secrets.

    Tune hands the keys of AWS to every worker as its runtime environment, and Ray writes runtime
    environments into logs that all users of a machine can read. No trial needs them: data, teacher
    and store are read from the storage, and MLflow is the driver's alone. The workers of a private
    Ray inherit them from the driver as before, in memory that only its user can read; Ray has no
    option for it.
    """
    names: set[str] = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in names if not may_name_a_secret(name)}
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE = names
