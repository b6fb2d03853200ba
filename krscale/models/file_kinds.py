"""Identify a file that was given as weights but holds none, for the error message."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

_TAR_AT, _TAR = 257, b"ustar"
_BEGINNINGS: Mapping[bytes, str] = {
    b"<": "a web page, or an answer in XML, as a failed download leaves it",
    b"{": "JSON; the weights are in another file",
    b"\x1f\x8b": "compressed; unpack it first",
    b"BZh": "compressed; unpack it first",
    b"\xfd7zXZ": "compressed; unpack it first",
    b"\x89HDF": "an HDF5 file, as Keras writes it, and not of PyTorch",
    b"\x08": "a protocol buffer, as of ONNX or TensorFlow, and not of PyTorch",
    b"\x93NUMPY": "an array of numpy, and not of PyTorch",
}
_STATE = "save the weights alone: torch.save({}, path)"
_MEMBERS: Mapping[str, str] = {
    "constants.pkl": f"a TorchScript program; {_STATE.format('torch.jit.load(path).state_dict()')}",
    "archive_format": f"an exported program; {_STATE.format('torch.export.load(path).state_dict')}",
    ".npy": "arrays of numpy, and not of PyTorch",
    ".pt": "an archive; unpack it first",
    ".pth": "an archive; unpack it first",
    ".safetensors": "an archive; unpack it first",
}
"""Kinds of zip archives, by the ending of a name in them."""


def kind_of_file(path: Path) -> str:
    """Return what a file is that is not a PyTorch checkpoint, and what to do; empty if unknown.

    Args:
        path: A regular file.

    Example:
        >>> page = Path("model.pth")
        >>> page.write_bytes(b"<!DOCTYPE html>")
        15
        >>> kind_of_file(page)
        'a web page, or an answer in XML, as a failed download leaves it'
    """
    with path.open("rb") as file:
        first = file.read(_TAR_AT + len(_TAR))
    if first[_TAR_AT:] == _TAR:
        return "an archive; unpack it first"
    if first.startswith(b"PK"):
        return _kind_of_archive(path)
    first = first.lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((kind for start, kind in _BEGINNINGS.items() if first.startswith(start)), "")


def _kind_of_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return ""
    kinds = (kind for end, kind in _MEMBERS.items() if any(name.endswith(end) for name in names))
    return next(kinds, "")


def is_safetensors(path: Path) -> bool:
    """Whether a file begins like a safetensors file: the length of a header, then JSON."""
    with path.open("rb") as file:
        first = file.read(9)
    length = int.from_bytes(first[:8], "little")
    return first[8:] == b"{" and length <= path.stat().st_size - 8
