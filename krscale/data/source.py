"""What a source of images is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from krscale.config import DataConfig
from krscale.data.arrow import Split
from krscale.data.stream import Stream
from krscale.errors import UserError

SplitName = Literal["train", "val", "test"]
Report = Callable[[int, int], None]
"""Called with the number of items done and the number of all items."""


@dataclass(frozen=True)
class SourceData:
    """All labelled images of a source.

    Attributes:
        classes: Name of each class; a label is an index into them.
        splits: `"train"`, and those splits the source fixes itself; streams where all images may
            be more than the memory holds.
    """

    classes: tuple[str, ...]
    splits: Mapping[SplitName, Split | Stream]


@dataclass(frozen=True)
class Description:
    """Sizes of a data set.

    Attributes:
        num_classes: Number of classes `K`.
        image_shape: `(C, H, W)`.
        num_train: Images of the training split.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    num_train: int


class Source(Protocol):
    """Reads or makes labelled images; built from the `data` section of an experiment."""

    def __init__(self, config: DataConfig) -> None:
        """Check the fields of `config` that concern this source."""
        ...

    @property
    def own_splits(self) -> tuple[SplitName, ...]:
        """Splits the source fixes itself; the others are cut from its training images."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """Return what determines the images, JSON-serialisable: options, hashes of files.

        Two sources of equal identity must read equal images. It is asked for at every start, so
        it must be far cheaper than `read`.
        """
        ...

    def describe(self) -> Description | None:
        """Return the sizes if they are known without reading, else None."""
        ...

    def read(self, report: Report) -> SourceData:
        """Return all images."""
        ...


def refuse_path(source: str, config: DataConfig) -> None:
    """Raise when `path` is set for a source that reads no file."""
    if config.path:
        raise UserError(
            f"data.path: the source {source!r} reads no file (got {config.path!r}); leave it empty."
        )
