"""The sources, by name."""

from __future__ import annotations

from collections.abc import Callable

from krscale.config import DataConfig
from krscale.data.source import Source
from krscale.data.sources.cifar import Cifar10, Cifar100
from krscale.data.sources.digits import Digits
from krscale.data.sources.function import Function
from krscale.data.sources.glyphs import Glyphs
from krscale.data.sources.hf_disk import HfDisk
from krscale.data.sources.idx import Idx
from krscale.data.sources.image_folder import ImageFolder
from krscale.data.sources.image_list import ImageList
from krscale.data.sources.numpy_files import NumpyFiles
from krscale.data.sources.parquet import Parquet
from krscale.errors import UserError, unknown_name

SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "digits": Digits,
    "glyphs": Glyphs,
    "hf_disk": HfDisk,
    "idx": Idx,
    "image_folder": ImageFolder,
    "image_list": ImageList,
    "numpy": NumpyFiles,
    "parquet": Parquet,
}
"""Sources by the value of `data.source`."""

_SETS_IN_IDX = ("mnist", "fashionmnist", "kmnist", "emnist")


def open_source(config: DataConfig) -> Source:
    """Return the source that `config` names.

    Raises:
        UserError: If no source has this name, or it refuses a field of `config`.
    """
    if ":" in config.source:
        return Function(config)
    if config.source.lower().replace("_", "").replace("-", "") in _SETS_IN_IDX:
        raise UserError(
            f"data.source: the files of {config.source!r} are read by the source 'idx'; data.path "
            "names their folder."
        )
    if config.source not in SOURCES:
        error = unknown_name("source", config.source, SOURCES, "data.source")
        raise UserError(f"{error} Your own is written 'package.module:callable'.")
    return SOURCES[config.source](config)
