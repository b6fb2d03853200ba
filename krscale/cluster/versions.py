"""The versions of Python and of packages that must be the same on all machines of a run."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from krscale.errors import NodeError

_PACKAGES = ("krscale", "ray", "torch", "pyarrow")


def own_versions() -> dict[str, str]:
    """Return the versions of this process, by name.

    Builds of one version for other hardware (`2.13.0+cpu`, `2.13.0+cu130`) count as the same: a
    head without a GPU may have another than its workers.
    """
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def other_versions(found: Mapping[str, str], own: Mapping[str, str]) -> str:
    """Describe the versions of a node that are not those of the command; empty if there are none.

    Example:
        >>> other_versions({"torch": "2.5", "ray": "2.60"}, {"torch": "2.13", "ray": "2.60"})
        'other versions than here: torch 2.5 (here 2.13)'
    """
    other = [f"{name} {found[name]} (here {own[name]})" for name in own if found[name] != own[name]]
    return f"other versions than here: {', '.join(other)}" if other else ""


def refuse_other_versions(here: Mapping[str, str]) -> None:
    """Raise an error in a worker with other versions than the command has.

    The nodes of a cluster are compared when a command starts (`nodes.py`). This is for those that
    join it later.

    Args:
        here: The versions of the command.

    Raises:
        NodeError: With the name of this machine and the versions that differ.
    """
    if other := other_versions(own_versions(), here):
        raise NodeError(
            f"{platform.node()} has {other}. Install the same ones on all nodes (constraints.txt)."
        )
