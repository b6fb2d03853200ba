"""Read `.pt` files of unknown origin, after checking them before torch reads them.

`torch.load(weights_only=True)` runs no code from a file, but it calls some thirty functions with
arguments from the file, and allocates storages of the sizes given there. So the opcodes of its
pickle are read first (`krscale.plain_pickle`). They may contain only a few functions that build
tensors, with arguments in the form that torch writes, and sizes for which the file has bytes.
"""

from __future__ import annotations

import argparse
import mmap
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from krscale.errors import UserError, first_line
from krscale.models.file_kinds import kind_of_file
from krscale.models.torch_rules import INERT, TensorsOnly
from krscale.pickle_rules import RefusedError, UnknownObjectError
from krscale.plain_pickle import read_plain

_LOADING = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
_ZIP = b"PK\x03\x04"
_MAX_PICKLE = 2**28
_MAX_RECORDS = 1_000_000
_BEFORE = 3  # pickles before the data in the older format: a number, a version and a system
_DAMAGE = (OSError, ValueError, RuntimeError, NotImplementedError, KeyError, zipfile.BadZipFile)


def read_torch(path: Path, prefix: str = "", device: torch.device | str = "cpu") -> Any:
    """Return the tensors and plain values in a file of `torch.save`, without running code from it.

    Args:
        path: The file, in torch's current format or that of versions before 1.6.
        prefix: Beginning of error messages, e.g. the setting that named the file.
        device: Device for the tensors.

    Raises:
        UserError: If it holds anything else, is damaged, or declares more bytes than it has.
    """
    refuse_foreign(path, prefix)
    with _worded(path, prefix), warnings.catch_warnings():
        # For a newer pickle protocol, torch warns that loading may fail; if it does, an error
        # follows.
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        # Namespace: command line arguments, which training scripts often store; a class without
        # code.
        with torch.serialization.safe_globals([argparse.Namespace, *INERT]):
            return torch.load(path, map_location=device, weights_only=True)


def refuse_foreign(path: Path, prefix: str = "") -> None:
    """Refuse a file that another library is about to read with `torch.load`.

    Args:
        path: The file.
        prefix: As for `read_torch`.

    Raises:
        UserError: As `read_torch`.
    """
    with _worded(path, prefix):
        check_torch(path)


@contextmanager
def only_weights() -> Iterator[None]:
    """Make `torch.load` read only weights, whatever arguments a library calls it with."""
    before = {name: os.environ.pop(name, None) for name in _LOADING}
    os.environ[_LOADING[0]] = "1"
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *INERT]):
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _worded(path: Path, prefix: str) -> Iterator[None]:
    """Turn any error of a file into one `UserError`."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{prefix}{path}: {_explained(path, error)}") from error


def _explained(path: Path, error: Exception) -> str:
    if kind := kind_of_file(path):
        return f"not a readable PyTorch file: it is {kind}."
    if isinstance(error, UnknownObjectError | pickle.UnpicklingError):
        found = f": it {error}" if isinstance(error, UnknownObjectError) else ""
        return (
            "holds more than tensors (code, or objects of other packages), or is not a PyTorch "
            f"file{found}. Save the weights alone: torch.save(model.state_dict(), path)."
        )
    if isinstance(error, RefusedError):
        return f"not a readable PyTorch file: it {error}."
    return f"not a readable PyTorch file: {first_line(error)}"


def check_torch(path: Path) -> None:
    """Refuse a file that torch should not read, see `read_torch`.

    Raises:
        RefusedError: If it is refused; the message says what was found.
    """
    size = path.stat().st_size
    if not size:
        raise RefusedError("is empty")
    with path.open("rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            _check_zip(path, size)
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _check_older(content, size)


def _check_zip(path: Path, size: int) -> None:
    try:
        content, records = _records(path, size)
    except RefusedError:
        raise
    except _DAMAGE as error:
        cut = "; its end may be missing, as after a download that broke off"
        raise RefusedError(f"cannot be unpacked ({error}{cut})") from None
    rules = TensorsOnly(size)
    read_plain(content, rules)
    for storage in rules.storages.values():
        if records.get(f"data/{storage.key}", -1) < storage.num_bytes:
            raise RefusedError(f"has no {storage.num_bytes:,} bytes of the tensor {storage.key!r}")


def _records(path: Path, size: int) -> tuple[bytes, dict[str, int]]:
    """Return the pickle in an archive, and the size of every part by name.

    Torch has its own reader of archives, which could read a file differently from `zipfile`: both
    must find the same parts.
    """
    with zipfile.ZipFile(path) as archive:
        found = archive.infolist()
    if len(found) > _MAX_RECORDS or sum(info.file_size for info in found) > size:
        raise RefusedError("unpacks to more than it has bytes")
    if any(info.compress_type != zipfile.ZIP_STORED for info in found):
        raise RefusedError("is compressed, which torch.save never does")
    records = {info.filename.partition("/")[2]: info.file_size for info in found}
    reader = torch._C.PyTorchFileReader(str(path))
    torch_found = {name: _record_size(reader, name) for name in reader.get_all_records()}
    if records != torch_found or len(records) != len(found):
        raise RefusedError("holds a part twice, or hidden ones")
    if records.get("data.pkl", _MAX_PICKLE) >= _MAX_PICKLE:
        raise RefusedError("holds no data.pkl")
    content: bytes = reader.get_record("data.pkl")
    return content, records


def _record_size(reader: Any, name: str) -> int:
    """Return the number of bytes that torch finds in a part of an archive."""
    if hasattr(reader, "get_record_size"):  # missing in some versions, such as torch 2.11
        size: int = reader.get_record_size(name)
        return size
    return len(reader.get_record(name))  # reads the part


def _check_older(content: mmap.mmap, size: int) -> None:
    rules = TensorsOnly(size)
    number, at = read_plain(content, rules, 0)
    if number != torch.serialization.MAGIC_NUMBER:
        raise RefusedError("is a pickle that torch.save has not written")
    for _ in range(_BEFORE):
        _, at = read_plain(content, rules, at)
    keys, _ = read_plain(content, rules, at)
    missing = [key for key in rules.storages if not isinstance(keys, list) or key not in keys]
    if missing:
        raise RefusedError(f"has no bytes of the tensor {missing[0]!r}")
    if sum(storage.num_bytes for storage in rules.storages.values()) > size:
        raise RefusedError("has tensors of more bytes than it has itself")
