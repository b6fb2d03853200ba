"""Images that are read piece by piece, since all of them may not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from krscale.data.arrow import Images, Labels, Split
from krscale.errors import UserError

Part = TypeVar("Part", bound=str)


@dataclass(frozen=True)
class Stream:
    """Labelled images of one split, whose labels are available before any image is decoded.

    Attributes:
        labels: `[N]` int64, indices into the classes.
        image_shape: `(C, H, W)` of every image.
        pieces: Starts reading and yields uint8 `[n, C, H, W]`, in the order of the labels.
    """

    labels: Labels
    image_shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Images]]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self) -> Iterator[Images]:
        """Yield the pieces.

        Raises:
            UserError: If the stream does not hold as many images as labels.
        """
        num_read = 0
        for piece in self.pieces():
            num_read += len(piece)
            if num_read <= len(self):
                yield piece
        if num_read != len(self):
            raise UserError(
                f"{num_read} images were read where {len(self)} labels had been: the files are "
                "damaged, or changed meanwhile. Start again."
            )


def counted_streams(
    labels: Mapping[Part, Labels],
    shape: tuple[int, ...],
    pieces: Mapping[Part, Callable[[], Iterator[Images]]],
    report: Callable[[int, int], None],
) -> dict[Part, Stream]:
    """Return a stream of each split; together they report how many images were read.

    Args:
        labels: Labels `[N]` of each split.
        shape: `(C, H, W)` of every image.
        pieces: Starts reading a split, as `Stream.pieces`.
        report: Called after each piece with the number of images done and of all images.
    """
    total, done = sum(len(labels[split]) for split in pieces), 0

    def counted(start: Callable[[], Iterator[Images]]) -> Iterator[Images]:
        nonlocal done
        for piece in start():
            yield piece
            done += len(piece)
            report(done, total)

    return {
        split: Stream(labels[split], shape, partial(counted, start))
        for split, start in pieces.items()
    }


def spill(
    stream: Stream, rows: Mapping[Part, npt.NDArray[np.int64]], folder: Path
) -> dict[Part, Split]:
    """Read a stream once and write each part of it to its own file.

    Args:
        stream: What to read.
        rows: Numbers of the images of each part in the stream, ascending, by name of the part.
        folder: Folder for the files. The splits are mapped from them, so it must outlive the
            splits.

    Returns:
        The parts, memory-mapped, so that the kernel may drop their pages.

    Raises:
        UserError: If the stream does not hold as many images as labels.
    """
    files = {name: folder / f"{name}.pixels" for name in rows}
    start = 0
    with ExitStack() as stack:
        sinks = {name: stack.enter_context(file.open("wb")) for name, file in files.items()}
        for piece in stream.read():
            for name, places in rows.items():
                first, last = np.searchsorted(places, [start, start + len(piece)])
                sinks[name].write(piece[places[first:last] - start].data)
            start += len(piece)
    return {
        name: Split(_map(file, (len(rows[name]), *stream.image_shape)), stream.labels[rows[name]])
        for name, file in files.items()
    }


def _map(file: Path, shape: tuple[int, ...]) -> Images:
    if shape[0] == 0:  # an empty file cannot be mapped
        return np.empty(shape, np.uint8)
    return np.memmap(file, np.uint8, mode="r", shape=shape)
