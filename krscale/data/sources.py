"""Where images come from: the protocol of a source, and the registry of sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from krscale.config import DataConfig
from krscale.data.arrow import Split
from krscale.errors import UserError, unknown_name

SplitName = Literal["train", "val", "test"]
Report = Callable[[int, int], None]
"""Called with the number of items done and the number of all items."""


@dataclass(frozen=True)
class SourceData:
    """All labelled images of a source.

    Attributes:
        classes: Name of each class; a label is an index into them.
        splits: `"train"`, and those splits the source fixes itself.
    """

    classes: tuple[str, ...]
    splits: Mapping[SplitName, Split]


class Source(Protocol):
    """Reads or makes labelled images; built from the `data` section of an experiment."""

    own_splits: ClassVar[tuple[SplitName, ...]]
    """Splits the source fixes itself; the others are cut from its training images."""

    def __init__(self, config: DataConfig) -> None:
        """Check the fields of `config` that concern this source."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """Return what determines the images, JSON-serialisable: options, hashes of files.

        Two sources of equal identity must read equal images. It is asked for at every start, so
        it must be far cheaper than `read`.
        """
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


class Digits:
    """The 1,797 handwritten digits of 8x8 pixels that ship with scikit-learn.

    Source: Alpaydin and Kaynak, *Optical Recognition of Handwritten Digits*, UCI, 1998 (its test
    set). Grey levels 0..16 are spread over 0..255, rounded to the nearest.
    """

    own_splits: ClassVar[tuple[SplitName, ...]] = ()

    def __init__(self, config: DataConfig) -> None:
        refuse_path("digits", config)

    def identity(self) -> Mapping[str, Any]:
        """Return nothing: there is only one set of digits."""
        return {}

    def read(self, report: Report) -> SourceData:
        """Return the digits as grey images `[1797, 1, 8, 8]`."""
        from sklearn.datasets import load_digits  # its import takes longer than a finished cache

        digits = load_digits()
        levels = digits.images.astype(np.int64)
        images = ((levels * 255 + 8) // 16).astype(np.uint8)[:, None]
        labels = digits.target.astype(np.int64)
        report(len(labels), len(labels))
        return SourceData(
            tuple(str(digit) for digit in range(10)), {"train": Split(images, labels)}
        )


SOURCES: dict[str, Callable[[DataConfig], Source]] = {"digits": Digits}
"""Sources by the name that `data.source` takes."""


def open_source(config: DataConfig) -> Source:
    """Return the source that `config` names.

    Raises:
        UserError: If no source has this name, or it refuses a field of `config`.
    """
    if config.source not in SOURCES:
        raise unknown_name("source", config.source, SOURCES, "data.source")
    return SOURCES[config.source](config)
