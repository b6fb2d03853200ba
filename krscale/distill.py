"""`python -m krscale.distill`: the same as `krscale distill`."""

import sys
from types import ModuleType
from typing import Any

from krscale.cli.app import main


class _Callable(ModuleType):
    """Makes this module callable like the function `krscale.distill`, whose name it has."""

    def __call__(self, **arguments: Any) -> Any:
        from krscale.on_objects import distill

        return distill(**arguments)


if __name__ == "__main__":
    sys.exit(main(["distill", *sys.argv[1:]]))
else:
    sys.modules[__name__].__class__ = _Callable
