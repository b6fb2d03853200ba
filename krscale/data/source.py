"""The protocol of a source of images, and what a source returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from krscale.config import DataConfig
from krscale.data.arrow import Split
from krscale.data.seen import Seen
from krscale.data.stream import Stream
from krscale.errors import UserError

SplitName = Literal["train", "val", "test"]
Report = Callable[[int, int], None]
"""Called with the number of items done and the number of all items."""
Note = Callable[[str], None]
"""Called with a sentence that the user should read once."""
Place = Callable[[int], str]
"""Describes where the image with a given number is."""


@dataclass(frozen=True)
class SourceData:
    """All labelled images of a source.

    Attributes:
        classes: Name of each class; a label is an index into them.
        splits: `"train"`, and the splits that the source itself defines; streams if all images may
            not fit in memory.
        places: Describes where the images of a split are; without an entry, images are described by
            number.
        notes: What the user should know about the files, one sentence each.
        published: Whether the splits were published by the authors of the data or drawn by krscale.
            Images that two such splits share are only noted, since the user cannot move them; in
            the user's own files they are refused.
        seen: Record of decoding, filled while the streams are read; None if nothing is decoded.
    """

    classes: tuple[str, ...]
    splits: Mapping[SplitName, Split | Stream]
    places: Mapping[SplitName, Place] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    published: bool = False
    seen: Seen | None = None

    def place(self, name: SplitName, number: int) -> str:
        """Describe where an image of a split is."""
        return self.places[name](number) if name in self.places else f"image {number}"


@dataclass(frozen=True)
class Description:
    """Sizes of a data set.

    Attributes:
        num_classes: Number of classes `K`.
        image_shape: `(C, H, W)`.
        num_train: Number of images in the training split.
        notes: What the user should know about the files, one sentence each.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    num_train: int
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """Reads or makes labelled images; built from the `data` section of an experiment."""

    def __init__(self, config: DataConfig) -> None:
        """Check the fields of `config` that concern this source."""
        ...

    @property
    def own_splits(self) -> tuple[SplitName, ...]:
        """Splits that the source itself defines; the others are cut from its training images."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """Return what determines the images, JSON-serialisable: options, hashes of files.

        Two sources of equal identity must read equal images. This is called at every start, so it
        must be far cheaper than `read`.
        """
        ...

    def describe(self) -> Description | None:
        """Return the sizes if they are known without reading, else None."""
        ...

    def read(self, report: Report) -> SourceData:
        """Return all images."""
        ...


def refuse_path(source: str, config: DataConfig) -> None:
    """Refuse `path` for a source that reads no file."""
    if config.path:
        raise UserError(
            f"data.path: the source {source!r} reads no file (got {config.path!r}); leave it empty."
        )
