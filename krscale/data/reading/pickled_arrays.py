"""Read arrays of numbers from pickles: match what numpy writes, and build them from the bytes.

numpy's constructors are never called with arguments from a file. The name of a type must be in a
fixed list, the state of an array must have the exact form that numpy writes, and the number of
bytes must match the shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krscale.errors import UserError
from krscale.pickle_rules import Global, RefusedError, Rules
from krscale.plain_pickle import read_plain

_RECONSTRUCT, _ENCODE, _BYTES = "_reconstruct", "encode", "bytes"
_FROM_BUFFER, _SCALAR, _NDARRAY, _DTYPE = "_frombuffer", "scalar", "ndarray", "dtype"
_KNOWN = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DTYPE,
    ("_codecs", "encode"): _ENCODE,  # Python 3's form of bytes in protocols 0 to 2
    ("__builtin__", "bytes"): _BYTES,
    ("builtins", "bytes"): _BYTES,
}
for _numpy in ("numpy.core", "numpy._core"):  # before numpy 2, and from numpy 2 on
    _KNOWN[f"{_numpy}.multiarray", "_reconstruct"] = _RECONSTRUCT
    _KNOWN[f"{_numpy}.multiarray", "scalar"] = _SCALAR
    _KNOWN[f"{_numpy}.numeric", "_frombuffer"] = _FROM_BUFFER
_TYPES = frozenset(("b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"))
_ORDERS = frozenset(("|", "<", ">", "="))
_MAX_AXES = 8
_VERSION = 3  # version of the state of a dtype
_PLAIN = (None, None, None, -1, -1, 0)  # no fields, no text, no flags


@dataclass
class _Type:
    """A type of numbers; its byte order is set with its state."""

    name: str
    order: str = ""

    def made(self) -> np.dtype[Any]:
        if not self.order:
            raise RefusedError("has an array of a type without its state")
        return np.dtype(f"{self.order}{self.name}")


@dataclass
class _Array:
    """An array, empty until its state is set."""

    values: npt.NDArray[Any] | None = None


class NumbersOnly(Rules):
    """Accepts arrays of numbers and bytes, and nothing else.

    Args:
        num_bytes: Size of the file; no more text than this is converted to bytes.
        purpose: What the file is for, for error messages.
        scalars: Whether numpy's scalars are accepted, too.
    """

    def __init__(self, num_bytes: int, purpose: str, scalars: bool = False) -> None:
        self.left, self.purpose = num_bytes, purpose
        self.unknown = () if scalars else (_SCALAR,)

    def find(self, found: Global) -> object:
        """Return the internal name of a function or type that builds numpy's arrays or bytes."""
        word = _KNOWN.get((found.module, found.name))
        if word is None or word in self.unknown:
            raise RefusedError(f"asks for {found}, which no {self.purpose} needs")
        return Global(found.module, word)

    def call(self, function: object, arguments: tuple[Any, ...]) -> object:
        """Return bytes, a number, or an array or type whose state may follow."""
        match _word(function), arguments:
            case "_reconstruct", (Global(name="ndarray"), (0,), b"b" | "b"):
                return _Array()
            case "dtype", ((bytes() | str()) as name, 0, 1):
                return _Type(_type_name(name))
            case "encode", (str() as text, "latin1" | b"latin1"):
                return self._encoded(text)
            case "bytes", ():
                return b""
            case "_frombuffer", (
                ((bytes() | memoryview()) as content),
                _Type() as kind,
                tuple() as shape,
                order,
            ):
                return _Array(_filled(shape, kind, order in ("F", b"F"), content))
            case "scalar", (_Type() as kind, bytes() as content):
                return _filled((), kind, False, content).item()
        raise RefusedError(f"calls {_word(function) or 'something'} in a way numpy does not write")

    def build(self, value: object, state: object) -> None:
        """Fill an array, or set the byte order of a type."""
        match value, state:
            case _Type(order=""), (int() as version, (bytes() | str()) as order, *rest):
                if version != _VERSION or tuple(rest) != _PLAIN or _text(order) not in _ORDERS:
                    raise RefusedError(f"has a type {value.name} with fields or flags")
                value.order = _text(order)
            case (
                _Array(values=None),
                (
                    1,
                    tuple() as shape,
                    _Type() as kind,
                    bool() as fortran,
                    (bytes() | memoryview()) as content,
                ),
            ):
                value.values = _filled(shape, kind, fortran, content)
            case _:
                raise RefusedError("sets a state in a way numpy does not write")

    def _encoded(self, text: str) -> bytes:
        self.left -= len(text)
        if self.left < 0:
            raise RefusedError("turns more text into bytes than it holds")
        return text.encode("latin1")


def read_numbers(content: bytes, where: str) -> Any:
    """Read a pickle of plain containers, numbers, byte strings and numeric arrays.

    Args:
        content: A pickle; strings written by Python 2 become bytes.
        where: Name of the file, used in errors.

    Returns:
        The contents. Arrays are read-only; they may only be values of the outermost dictionary.

    Raises:
        UserError: If the pickle is damaged or asks for anything else.

    Example:
        >>> import pickle
        >>> read_numbers(pickle.dumps({b"data": np.arange(3, dtype=np.uint8)}), "batch")
        {b'data': array([0, 1, 2], dtype=uint8)}
    """
    try:
        return finished(read_plain(content, NumbersOnly(len(content), "batch of images"))[0])
    except RefusedError as error:
        raise UserError(
            f"{where}: not a batch of images that can be trusted: it {error}."
        ) from None


def finished(found: Any) -> Any:
    """Replace placeholders in the outermost dictionary, or the value itself, by their arrays.

    Raises:
        RefusedError: If an array has no state.
    """
    if isinstance(found, dict):
        return {key: _array(value) for key, value in found.items()}
    return _array(found)


def _array(value: Any) -> Any:
    if not isinstance(value, _Array):
        return value
    if value.values is None:
        raise RefusedError("has an array without its values")
    return value.values


def _filled(
    shape: tuple[Any, ...], kind: _Type, fortran: bool, content: bytes | memoryview
) -> npt.NDArray[Any]:
    """Return an array that shares the memory of the bytes, whose number must match the shape."""
    made = kind.made()
    if len(shape) > _MAX_AXES or not all(type(size) is int and size >= 0 for size in shape):
        raise RefusedError("has an array whose shape is none")
    if math.prod(shape) * made.itemsize != len(content):
        raise RefusedError(
            f"has an array of {list(shape)} {kind.name} values in {len(content):,} bytes"
        )
    return np.frombuffer(content, made).reshape(shape, order="F" if fortran else "C")


def _word(function: object) -> str:
    return function.name if isinstance(function, Global) else ""


def _text(name: bytes | str) -> str:
    return name.decode("latin1") if isinstance(name, bytes) else name


def _type_name(name: bytes | str) -> str:
    text = _text(name)
    if text.removeprefix("|") not in _TYPES:
        shown = ascii(text[:40])
        raise RefusedError(f"has an array of type {shown}; allowed: {', '.join(sorted(_TYPES))}")
    return text.removeprefix("|")
