"""Rules for the pickle in a `.pt` file: only tensors as torch writes them, and plain values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from krscale.pickle_rules import Global, RefusedError, Rules, UnknownObjectError

_ITEM_SIZES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2,
    "LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1,
    "BoolStorage": 1, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "UntypedStorage": 1,
}  # fmt: skip
_STORAGES = {f"{module}.{name}" for module in ("torch", "torch.cuda") for name in _ITEM_SIZES}
_STORAGES |= {"torch.storage.UntypedStorage"}
_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_SUBCLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter")
_NAMESPACE = "argparse.Namespace"
_KEPT = {
    *(f"numpy{core}.multiarray.{name}" for core in (".core", "._core")
      for name in ("scalar", "_reconstruct")),
    "numpy.dtype", "numpy.ndarray",
    *(f"pathlib{module}.{name}Path" for module in ("", "._local")
      for name in ("", "Posix", "Windows", "Pure", "PurePosix", "PureWindows")),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str")),
}  # fmt: skip
"""Types that training scripts store beside weights: numpy's scalars and arrays, paths, dates, and
factories of a defaultdict. No such object is built: `torch.load` gets `Kept` for each one."""
_FACTORIES = frozenset(name for name in _KEPT if name.startswith("builtins."))
_KNOWN = {_NAMESPACE, *_SUBCLASSES, *_KEPT}
_MAX_AXES = 64
_MAX_SET = 1000
_REPEATED, _SMALL = 16, 2**26
_LATIN = ("latin1", "latin-1")


@dataclass(frozen=True)
class Storage:
    """The bytes of tensors.

    Attributes:
        key: Name under which they are stored.
        item_size: Bytes of an element.
        num_bytes: Bytes of all elements.
    """

    key: str
    item_size: int
    num_bytes: int


class _Tensor:
    """Placeholder for a tensor."""


class _Namespace:
    """Placeholder for the arguments of a command."""


class _Other:
    """Placeholder for a set, a device or a complex number."""


class Kept:
    """Placeholder for an object beside the weights, which is never built, whatever a file asks."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def _kept_table(*_: object) -> dict[object, object]:
    """Return an empty dictionary in place of a new defaultdict."""
    return {}


INERT: tuple[tuple[Callable[..., object], str], ...] = (
    *((Kept, name) for name in sorted(_KEPT)),
    (_kept_table, "collections.defaultdict"),
)
"""What `torch.load` builds for names that are not torch's: pairs for its `safe_globals`."""


class TensorsOnly(Rules):
    """Accepts what torch writes for tensors, dictionaries and command line arguments.

    Args:
        num_bytes: Size of the file.

    Attributes:
        storages: Storages of all tensors that were found, by key.
    """

    def __init__(self, num_bytes: int) -> None:
        self.storages: dict[str, Storage] = {}
        self._text_left = num_bytes
        self._shown_left = _REPEATED * num_bytes + _SMALL
        self._calls: dict[str, Callable[..., object]] = {
            "collections.OrderedDict": self._table,
            "collections.Counter": self._table,
            "collections.defaultdict": self._defaults,
            "torch.Size": self._size,
            "torch.device": self._device,
            "_codecs.encode": self._encoded,
            "builtins.bytearray": self._bytearray,
            "builtins.set": self._set,
            "builtins.complex": self._complex,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor_v2,
            "torch._utils._rebuild_tensor_v3": self._tensor_v3,
            "torch._utils._rebuild_parameter": self._parameter,
            "torch._utils._rebuild_parameter_with_state": self._parameter,
            "torch._tensor._rebuild_from_type_v2": self._subclass,
        }

    def find(self, found: Global) -> object:
        """Return a known name in its Python 3 form; refuse others."""
        name = str(found).replace("__builtin__.", "builtins.")
        if name in _DTYPES:
            return _DTYPES[name]
        if name in self._calls or name in _STORAGES or name in _KNOWN:
            return Global(*name.rsplit(".", 1))
        raise UnknownObjectError(f"asks for {found}")

    def call(self, function: object, arguments: tuple[Any, ...]) -> object:
        """Check the arguments of a function that torch will call."""
        if isinstance(function, Global) and str(function) in _KEPT - _FACTORIES:
            return Kept()
        how = self._calls.get(str(function)) if isinstance(function, Global) else None
        if how is None:
            return super().call(function, arguments)
        try:
            return how(*arguments)
        except TypeError:
            raise RefusedError(f"calls {function} in a way torch does not write") from None

    def new(self, kind: object, arguments: tuple[Any, ...]) -> object:
        """Return a placeholder for command line arguments."""
        if str(kind) == _NAMESPACE and not arguments:
            return _Namespace()
        return super().new(kind, arguments)

    def build(self, value: object, state: object) -> None:
        """Accept attributes of command line arguments, and the versions in a state dict."""
        names = set(state) if isinstance(state, dict) else {None}
        if type(value) is dict and names == {"_metadata"}:
            return
        if type(value) is Kept:
            return
        if type(value) is _Namespace and all(_is_name(name) for name in names):
            return
        super().build(value, state)

    def persistent(self, name: object) -> object:
        """Return the storage that a tensor refers to."""
        match name:
            case (("storage" | b"storage"), Global() as kind, key, _, int() as numel, *rest):
                if str(kind) in _STORAGES and rest in ([], [None]) and numel >= 0:
                    item_size = _ITEM_SIZES[kind.name]
                    found = Storage(_text(key), item_size, numel * item_size)
                    if self.storages.setdefault(found.key, found) == found:
                        return found
        raise RefusedError("has a tensor without bytes that torch would find")

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> _Tensor:
        if type(storage) is not Storage:
            raise TypeError
        return self._view(storage, storage.item_size, offset, size, stride)

    def _tensor_v2(
        self, storage: Any, offset: Any, size: Any, stride: Any,
        grad: bool, hooks: Any, metadata: Any = None,
    ) -> _Tensor:  # fmt: skip
        _plain(grad, hooks, metadata)
        return self._tensor(storage, offset, size, stride)

    def _tensor_v3(
        self, storage: Any, offset: Any, size: Any, stride: Any,
        grad: bool, hooks: Any, dtype: Any, metadata: Any = None,
    ) -> _Tensor:  # fmt: skip
        _plain(grad, hooks, metadata)
        if type(storage) is not Storage or not isinstance(dtype, torch.dtype):
            raise TypeError
        return self._view(storage, dtype.itemsize, offset, size, stride)

    def _view(self, storage: Storage, item: int, offset: Any, size: Any, stride: Any) -> _Tensor:
        """Check that a tensor is within its storage, and that all tensors are not too large."""
        _whole((offset,))
        _whole(size)
        _whole(stride)
        if len(size) != len(stride) or len(size) > _MAX_AXES:
            raise TypeError
        numel = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if numel and (last + 1) * item > storage.num_bytes:
            raise RefusedError(f"has a tensor of shape {list(size)} beyond its bytes")
        self._shown_left -= numel * item
        if self._shown_left < 0:
            raise RefusedError(f"has a tensor of shape {list(size)}, more than the file can hold")
        return _Tensor()

    def _parameter(self, data: Any, grad: bool, hooks: Any, state: Any = None) -> _Tensor:
        _plain(grad, hooks, None)
        _attributes(state)
        if type(data) is not _Tensor:
            raise TypeError
        return data

    def _subclass(self, function: Any, kind: Any, arguments: Any, state: Any) -> object:
        name = str(function) if isinstance(function, Global) else ""
        if str(kind) not in _SUBCLASSES or not name.startswith("torch._utils."):
            raise TypeError
        _attributes(state)
        return self.call(function, arguments)

    def _encoded(self, text: Any, encoding: Any) -> bytes:
        if type(text) is not str or _text(encoding) not in _LATIN:
            raise TypeError
        self._text_left -= len(text)
        if self._text_left < 0:
            raise RefusedError("turns more text into bytes than it holds")
        return text.encode("latin1")

    def _bytearray(self, text: Any = "", encoding: Any = "latin1") -> bytes:
        return b"" if isinstance(text, bytes) else self._encoded(text, encoding)

    def _table(self, items: Any = ()) -> dict[object, object]:
        """Accept a dictionary or nothing, as Python 3 writes it, or the pairs of Python 2."""
        if type(items) is not dict and not all(
            isinstance(pair, list | tuple) and len(pair) == len(("key", "value"))
            and type(pair[0]) in (str, bytes) for pair in items
        ):  # fmt: skip
            raise TypeError
        return {}

    def _defaults(self, factory: Any = None) -> dict[object, object]:
        if factory is not None and not isinstance(factory, Global):
            raise TypeError
        return {}

    def _size(self, size: Any = ()) -> tuple[int, ...]:
        _whole(size)
        return tuple(size)

    def _device(self, name: Any, number: Any = 0) -> _Other:
        if type(name) is not str or type(number) is not int:
            raise TypeError
        return _Other()

    def _set(self, items: Any = ()) -> _Other:
        if not isinstance(items, list | tuple) or len(items) > _MAX_SET:
            raise TypeError
        return _Other()

    def _complex(self, real: Any, imaginary: Any) -> _Other:
        if type(real) is not float or type(imaginary) is not float:
            raise TypeError
        return _Other()


def _plain(grad: Any, hooks: Any, metadata: Any) -> None:
    """Refuse hooks, which torch never writes, and unknown metadata."""
    known = metadata is None or (isinstance(metadata, dict) and set(metadata) <= {"conj", "neg"})
    if type(grad) is not bool or not known or (hooks is not None and hooks != {}):
        raise TypeError


def _attributes(state: Any) -> None:
    if state is not None and not (isinstance(state, dict) and all(map(_is_name, state))):
        raise TypeError


def _is_name(name: object) -> bool:
    return isinstance(name, str) and not name.startswith("__")


def _whole(numbers: Any) -> None:
    if type(numbers) is not tuple or not all(type(n) is int and n >= 0 for n in numbers):
        raise TypeError


def _text(value: Any) -> str:
    if not isinstance(value, bytes | str):
        raise TypeError
    return value.decode("ascii") if isinstance(value, bytes) else value
