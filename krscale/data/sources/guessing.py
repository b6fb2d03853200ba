"""Find the source for what a user named: a path, or an embedded source."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from krscale.config import FilesConfig
from krscale.data.reading.walking import is_hidden_folder
from krscale.data.sources.cifar import Cifar10, Cifar100
from krscale.data.sources.idx import INSIDE
from krscale.data.sources.image_folder import SUFFIXES
from krscale.data.sources.numpy_files import holds_images
from krscale.data.sources.registry import SOURCES
from krscale.errors import UserError, nearest
from krscale.foreign import missing, parsing, regular, user_path

_CIFAR = {
    "cifar100": ("cifar-100-", "fine_label_names.txt", Cifar100.folders),
    "cifar10": ("cifar-10-", "batches.meta", Cifar10.folders),
}
"""For each source: the start of its archives' names, a file in them, and the folders in them."""
_BY_SUFFIX = {
    ".csv": "image_list",
    ".tsv": "image_list",
    ".npz": "numpy",
    ".npy": "numpy",
    ".parquet": "parquet",
}
_COLUMNS = FilesConfig()
_IDX = re.compile(r"[-.]idx[13][-.]ubyte")


def guess_source(text: str, is_named: bool = False) -> list[str]:
    """Return the settings of the source that reads a path or has a name.

    Args:
        text: What the user named.
        is_named: Whether other settings already name the source, whatever the path is.

    Raises:
        UserError: If there is neither such a path nor a source of this name.
    """
    path = user_path(text, "SOURCE")
    if (text in SOURCES or ":" in text) and not path.exists():
        return [f"data.source={text}"]
    if not path.exists():
        guess = nearest(text, SOURCES)
        hint = f" Did you mean the source {guess!r}?" if guess else ""
        raise UserError(
            f"{text}: {missing(path, 'file or folder')}, and no source of this name.{hint} "
            f"Sources: {', '.join(SOURCES)}."
        )
    found = [f"data.path={json.dumps(str(path.resolve()))}"]
    return found if is_named else [f"data.source={kind_of(path)}", *found]


def kind_of(path: Path) -> str:
    """Return the source that reads a path, judged by file names.

    Raises:
        UserError: If no source reads such a file.
    """
    if not path.is_dir():
        with parsing(f"{path}: cannot be read"):
            regular(path)
    names = [path.name] if path.is_file() else [entry.name for entry in path.iterdir()]
    if source := _cifar(path, names):
        return source
    kept = path / INSIDE  # torchvision's layout
    inside = [entry.name for entry in kept.iterdir()] if kept.is_dir() else []
    if any(_IDX.search(name) for name in (*names, *inside)):
        return "idx"
    if path.is_file():
        found = _BY_SUFFIX.get(path.suffix.lower()) or _by_content(path)
        return "image_list" if found == "parquet" and _is_list(path) else found
    if {"state.json", "dataset_dict.json"} & set(names):
        return "hf_disk"
    arrays = [name for name in names if name.endswith(".npy")]
    if any(holds_images(Path(name).stem) for name in arrays) or (arrays and not _images(path)):
        return "numpy"
    # Layouts of the Hugging Face hub: `data/train-0.parquet`, `default/train/0000.parquet`.
    if any(any(path.glob(f"{depth}*.parquet")) for depth in ("", "*/", "*/*/")):
        return "parquet"
    return "image_folder"


def _cifar(path: Path, names: Sequence[str]) -> str:
    """Return the source of the CIFAR authors' distribution, or "" if the path is not that.

    A name alone is not enough: folders of images and lists are often named after CIFAR, too.
    """
    for source, (start, inside, folders) in _CIFAR.items():
        if path.name in folders or any(n in folders or n.startswith(inside) for n in names):
            return source
        files = [path] if path.is_file() else [path / n for n in names if n.startswith(start)]
        packed = [file for file in files if file.name.startswith(start) and file.is_file()]
        if any(file.suffix.lower() not in _BY_SUFFIX for file in packed):
            return source
    return ""


def _images(path: Path) -> bool:
    """Whether a folder holds images, or folders that may hold them.

    An array beside them is then not the data; it may be the mean of all images.
    """
    return any(
        not is_hidden_folder(entry.name) if entry.is_dir() else entry.suffix.lower() in SUFFIXES
        for entry in path.iterdir()
    )


def _is_list(path: Path) -> bool:
    """Whether a Parquet file names images and holds none; False if it cannot be read."""
    with suppress(UserError), parsing("no columns"):  # the source that reads it reports the error
        schema = pq.read_schema(regular(path))
        names = set(schema.names)
        return (
            _COLUMNS.path_column in names
            and _COLUMNS.image_column not in names
            and not any(_may_be_images(kind) for kind in schema.types)
        )
    return False


def _may_be_images(kind: Any) -> bool:
    return bool(
        pa.types.is_struct(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _by_content(path: Path) -> str:
    """Return the source of a file with an unknown suffix; only Parquet is recognised by content."""
    with parsing(f"{path}: cannot be read"), path.open("rb") as file:
        if file.read(4) == b"PAR1":
            return "parquet"
    kinds = ", ".join(_BY_SUFFIX)
    raise UserError(
        f"{path}: no source reads such a file by itself ({kinds} by their names, Parquet by any); "
        "a list of images with another ending is to be called .csv or .tsv."
    )
