"""Remove images from a source: unreadable ones, or those that exceed a limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from krscale.data.arrow import Images, Split
from krscale.data.seen import Fault
from krscale.data.source import Place, SourceData
from krscale.data.stream import Stream

Kept = npt.NDArray[np.int64]


def without(data: SourceData, faults: Sequence[Fault]) -> SourceData:
    """Return a source without the images that have a fault, and reset its record of decoding.

    Args:
        data: Data of the source.
        faults: Faults of its images.
    """
    splits, places = dict(data.splits), dict(data.places)
    for name, split in data.splits.items():
        gone = [fault.number for fault in faults if fault.split == name]
        if gone:
            kept = np.setdiff1d(np.arange(len(split)), gone)
            splits[name] = keep(split, kept)
            places[name] = Renumbered(partial(data.place, name), kept)
    seen = data.seen
    if seen is not None:
        seen.left_out |= {(fault.split, fault.number) for fault in faults}
        seen.forget()
    return replace(data, splits=splits, places=places)


@dataclass(frozen=True)
class Renumbered:
    """Describes where an image is after images were renumbered."""

    place: Place
    kept: Kept

    def __call__(self, number: int) -> str:
        """Return the place of an image by its new number."""
        return self.place(int(self.kept[number]))


def keep(split: Split | Stream, kept: Kept) -> Split | Stream:
    """Keep the images with the given ascending numbers; a stream reads and drops the others."""
    if isinstance(split, Split):
        return Split(split.images[kept], split.labels[kept])

    def pieces() -> Iterator[Images]:
        start = 0
        for piece in split.read():
            first, last = np.searchsorted(kept, [start, start + len(piece)])
            yield piece[kept[first:last] - start]
            start += len(piece)

    return Stream(split.labels[kept], split.image_shape, pieces)
