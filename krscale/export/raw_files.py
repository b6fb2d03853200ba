"""The original image files of the test split, which are what the user of an export has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krscale.config import DataConfig
from krscale.data import Dataset
from krscale.data.content import SPLITS_FILE, read_split_list

DECODED = ("image_folder", "image_list", "parquet", "hf_disk")
"""Sources whose images are, or were, files; they are read according to `data.files`."""


@dataclass(frozen=True)
class RawFiles:
    """Files with their classes, in the order of the test split."""

    files: tuple[str, ...]
    labels: tuple[str, ...]


def decoding_of(config: DataConfig) -> dict[str, Any]:
    """Return how image files become the pixels that a student was trained on.

    Images that never were files are taken from files in the usual way: transparency on white, and
    scaled and cut to their size.
    """
    is_raw = config.source == "parquet" and bool(config.files.raw_shape)
    if config.source not in DECODED or is_raw:
        return _decoding(config, scaled=True)
    return _decoding(config, scaled=bool(config.files.image_size))


def find_raw_files(
    dataset: Dataset, config: DataConfig, note: Callable[[str], None]
) -> RawFiles | None:
    """Return the files of the test split, or None if its images are not single files.

    Args:
        dataset: The data set, whose folder has the list of the images of each split.
        config: Has the path of the source.
        note: Receives a line for the user if files are missing.
    """
    listed = dataset.path / SPLITS_FILE
    if not listed.is_file():
        return None
    root = Path(config.path).expanduser()
    root = root if root.is_dir() else root.parent
    lines = [line for line in read_split_list(listed) if line.split == "test"]
    files = [root / line.path for line in lines]
    found = sum(file.is_file() for file in files)
    if found < len(files):
        if found:
            note(
                f"{root}: {len(files) - found} of {len(files)} files of the test split are gone: "
                "predict.py is not proven from files."
            )
        return None
    return RawFiles(tuple(map(str, files)), tuple(line.label for line in lines))


def _decoding(config: DataConfig, *, scaled: bool) -> dict[str, Any]:
    return {
        "background": config.background,
        "depth": "the upper 8 bits of each channel",
        "exif_orientation": config.files.exif_orientation,
        "scaled": scaled,
        "scaling": "bilinear, until image_shape is covered; what is over is cut from both sides",
    }
