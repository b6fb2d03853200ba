"""Whether networks that were given as objects can be sent to workers: asked before they are.

Ray pickles them by value where they are of `__main__` (a script, a notebook) or without a name, and
by the name of their module otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping

import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError

from krscale.errors import UserError
from krscale.models.given import Builder

_WAY_ON = (
    "Put its class, or a function that builds it, into a module that is installed or on PYTHONPATH."
)


def check_sendable(builders: Mapping[str, Builder]) -> None:
    """Refuse what cannot be pickled; needs no Ray that runs.

    Raises:
        UserError: Naming the network.
    """
    for name, builder in builders.items():
        try:
            cloudpickle.dumps(builder)  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever its own code raises
            raise UserError(
                f"{_of(name)}: it cannot be sent to workers ({type(error).__name__}: "
                f"{_line(error)}). {_WAY_ON}"
            ) from error


def check_arrival(builders: Mapping[str, Builder]) -> None:
    """Refuse what a worker of the connected Ray cannot read.

    Raises:
        UserError: Naming the network and what the worker lacks.
    """
    for name, builder in builders.items():
        task = ray.remote(num_cpus=0)(_read)
        try:
            content: bytes = cloudpickle.dumps(builder)  # type: ignore[no-untyped-call]
            ray.get(task.remote(content))
        except RayTaskError as error:
            cause = error.cause
            raise UserError(
                f"{_of(name)}: workers cannot read it ({type(cause).__name__}: {_line(cause)}). "
                f"{_WAY_ON}"
            ) from error
        except RayError as error:
            raise UserError(f"{_of(name)}: it did not reach a worker: {_line(error)}.") from error


def _read(content: bytes) -> None:
    cloudpickle.loads(content)  # what this process has pickled itself


def _of(name: str) -> str:
    return f"search: {name.partition(':')[2]}"


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")
