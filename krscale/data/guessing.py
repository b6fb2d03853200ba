"""Which source reads what a user has named: a path, or an embedded source."""

from __future__ import annotations

import json
import re
from pathlib import Path

from krscale.data.idx import INSIDE
from krscale.data.sources import SOURCES
from krscale.errors import UserError, nearest
from krscale.foreign import missing, parsing, regular, user_path

_CIFAR = {
    "cifar100": ("cifar-100-", "fine_label_names.txt"),
    "cifar10": ("cifar-10-", "batches.meta"),
}
"""What names of files of these sources begin with."""
_BY_SUFFIX = {
    ".csv": "image_list",
    ".tsv": "image_list",
    ".npz": "numpy",
    ".npy": "numpy",
    ".parquet": "parquet",
}
_IDX = re.compile(r"[-.]idx[13][-.]ubyte")


def guess_source(text: str) -> list[str]:
    """Return the settings of the source that reads a path, or that has a name.

    Raises:
        UserError: If there is no such path, and no source of this name.
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
    return [f"data.source={kind_of(path)}", f"data.path={json.dumps(str(path.resolve()))}"]


def kind_of(path: Path) -> str:
    """Return the source that reads a path, by the names of files.

    Raises:
        UserError: If none reads such a file.
    """
    if not path.is_dir():
        with parsing(f"{path}: cannot be read"):
            regular(path)
    names = [path.name] if path.is_file() else [entry.name for entry in path.iterdir()]
    for source, first in _CIFAR.items():
        if any(name.startswith(first) for name in (path.name, *names)):
            return source
    kept = path / INSIDE  # as torchvision keeps them
    inside = [entry.name for entry in kept.iterdir()] if kept.is_dir() else []
    if any(_IDX.search(name) for name in (*names, *inside)):
        return "idx"
    if path.is_file():
        return _BY_SUFFIX.get(path.suffix.lower()) or _by_content(path)
    if {"state.json", "dataset_dict.json"} & set(names):
        return "hf_disk"
    if any(name.endswith(".npy") for name in names):
        return "numpy"
    # As the hub of Hugging Face has them: `data/train-0.parquet`, `default/train/0000.parquet`.
    if any(any(path.glob(f"{depth}*.parquet")) for depth in ("", "*/", "*/*/")):
        return "parquet"
    return "image_folder"


def _by_content(path: Path) -> str:
    """Return the source of a file whose name says nothing, as that of a Parquet file may."""
    with parsing(f"{path}: cannot be read"), path.open("rb") as file:
        if file.read(4) == b"PAR1":
            return "parquet"
    kinds = ", ".join(_BY_SUFFIX)
    raise UserError(
        f"{path}: no source reads such a file by itself ({kinds} by their names, Parquet by any); "
        "a list of images with another ending is to be called .csv or .tsv."
    )
