"""Check, before a run starts, whether networks given as objects can be sent to workers.

Ray pickles a network by value if it is of `__main__` (a script, a notebook) or has no name, and
otherwise by the name of its module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError

from krscale.errors import UserError
from krscale.models.foreign import import_callable
from krscale.models.given import Builder
from krscale.models.libraries import LIBRARIES

_WAY_ON = (
    "Put its class, or a function that builds it, into a module that is installed or on PYTHONPATH."
)


def check_sendable(builders: Mapping[str, Builder]) -> None:
    """Refuse networks that cannot be pickled. Ray need not be running.

    Raises:
        UserError: With the name of the network.
    """
    for name, builder in builders.items():
        try:
            cloudpickle.dumps(builder)  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever its own code raises
            raise UserError(
                f"{_of(name)}: it cannot be sent to workers ({type(error).__name__}: "
                f"{_line(error)}). {_WAY_ON}"
            ) from error


def check_arrival(
    models: Iterable[str], builders: Mapping[str, Builder], where: str = "student"
) -> None:
    """Refuse networks that a worker of the connected Ray cannot import or read, before any trial.

    Args:
        models: Names of models; those of the zoo and of libraries are not checked.
        builders: Builders of the networks that were given as objects.
        where: The config table that names the models.

    Raises:
        UserError: With the name of the network and what the worker lacks.
    """
    own = {name for name in models if ":" in name and name.partition(":")[0] not in LIBRARIES}
    for name in sorted(own):
        _check(name, builders.get(name), where)


def _check(name: str, builder: Builder | None, where: str) -> None:
    content: bytes = cloudpickle.dumps(builder)  # type: ignore[no-untyped-call]
    task = ray.remote(num_cpus=0)(_read)
    try:
        ray.get(task.remote(name, content, where))
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        cause = error.cause
        found = f"{type(cause).__name__}: {_line(cause)}"
        raise UserError(f"{_of(name)}: workers cannot read it ({found}). {_WAY_ON}") from error
    except RayError as error:
        raise UserError(f"{_of(name)}: it did not reach a worker: {_line(error)}.") from error


def _read(name: str, content: bytes, where: str) -> None:
    """Load or import the network in a worker, as a trial will."""
    builder = cloudpickle.loads(content)  # pickled by krscale's own driver
    if builder is None:
        import_callable(name, where)


def _of(name: str) -> str:
    return f"search: {name.partition(':')[2]}"


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")
