"""Unpickling files that hold numbers and text, and refusing to run anything else.

A pickle is a program: it may import and call whatever it names. The batches of CIFAR are pickles
that need nothing but numpy's array constructors, so nothing else is let through.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from krscale.errors import UserError

_reconstruct: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _NumbersOnly(pickle.Unpickler):
    """Finds numpy's array constructors and no other global."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module_name}.{global_name}, which no batch of images needs"
            ) from None


def read_numbers(content: bytes, where: str) -> Any:
    """Unpickle plain containers, numbers, byte strings and numeric arrays.

    Args:
        content: A pickle; strings written by Python 2 become bytes.
        where: Name of the file, used in errors.

    Raises:
        UserError: If the pickle is damaged or asks for anything that could run code.
    """
    try:
        return _NumbersOnly(io.BytesIO(content), encoding="bytes").load()
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        AttributeError,
        MemoryError,
        OverflowError,
    ) as error:  # whatever a damaged pickle makes its own machine stumble over
        raise UserError(f"{where}: not a batch of images that can be trusted: {error}.") from error
