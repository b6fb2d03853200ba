"""Source data from image files or their bytes, decoded piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np

from krscale.config import DataConfig
from krscale.data.arrow import Images, Labels
from krscale.data.reading.classes import Values, alike
from krscale.data.reading.decoding import Decoder, Encoded, piece_size
from krscale.data.reading.naming import Written, read_labels
from krscale.data.seen import Seen
from krscale.data.source import Place, Report, SourceData, SplitName
from krscale.data.splits.limiting import limit_note, taken
from krscale.data.splits.skipping import Renumbered
from krscale.data.splits.stratify import Rows
from krscale.data.stream import Stream, counted_streams
from krscale.errors import UserError

Batches = Callable[[int], Iterator[Sequence[Encoded]]]
"""Yields all images of a split in order, the given number at a time."""


@dataclass(frozen=True)
class Part:
    """One split as it was found.

    Attributes:
        values: Labels as they are stored.
        batches: The images.
        place: Describes where an image is.
        label_place: Describes where a label is; None if that is the same.
        names: Names that the files of this split give to the numbers from 0; empty if they give
            none.
    """

    values: Values
    batches: Batches
    place: Place
    label_place: Place | None = None
    names: tuple[str, ...] = ()

    @property
    def labelled_at(self) -> Place:
        """Describes where a label is."""
        return self.label_place or self.place


def encoded_data(
    parts: Mapping[SplitName, Part],
    config: DataConfig,
    report: Report,
    notes: Sequence[str] = (),
) -> SourceData:
    """Return files as the data of a source; only the first image is decoded here.

    Args:
        parts: At least `"train"`.
        config: The data section.
        report: Called with the number of images done and of all images while they are read.
        notes: What the user should know about the files.

    Raises:
        UserError: If labels are not classes, or no image can be read.
    """
    train = parts["train"]
    if not len(train.values):
        raise UserError(f"{config.path}: there are no training images.")
    classes, labels = read_labels(
        {s: Written(part.values, part.labelled_at, part.names) for s, part in parts.items()}, config
    )
    kept = taken(labels["train"], classes, len(parts), config)
    if kept is not None:
        # Limit now rather than after decoding, which takes long for a large data set.
        notes = (*notes, limit_note(len(train.values), config))
        labels["train"] = labels["train"][kept]
        parts = {**parts, "train": _only(train, kept)}
    streams, seen = encoded_streams(labels, parts, config, report)
    places = {split: part.place for split, part in parts.items()}
    return SourceData(classes, streams, places, (*notes, *alike(classes, config.path)), seen=seen)


def encoded_streams(
    labels: Mapping[SplitName, Labels],
    parts: Mapping[SplitName, Part],
    config: DataConfig,
    report: Report,
) -> tuple[dict[SplitName, Stream], Seen]:
    """Return streams that decode image files, and the record that they fill while decoding.

    Args:
        labels: Labels `[N]` of each split.
        parts: Images of each split; at least `"train"`, whose first image determines the shape.
        config: The data section.
        report: Called with the number of images done and of all images while they are read.

    Raises:
        UserError: If no image of train can be read.
    """
    decoder = Decoder(config.files, config.background)
    each = chain.from_iterable(parts["train"].batches(1))
    shape = decoder.first_shape(each, parts["train"].place)

    def pieces(split: SplitName) -> Iterator[Images]:
        part = parts[split]
        return decoder.pieces(part.batches(piece_size(shape)), shape, part.place, split)

    starts = {split: partial(pieces, split) for split in parts}
    return counted_streams(labels, shape, starts, report), decoder.seen


def _only(part: Part, kept: Rows) -> Part:
    """Return the part with only the images of the given numbers, which are ascending."""

    def batches(size: int) -> Iterator[Sequence[Encoded]]:
        start = 0
        for batch in part.batches(size):
            first, last = np.searchsorted(kept, [start, start + len(batch)])
            if first < last:
                yield [batch[number] for number in kept[first:last] - start]
            start += len(batch)

    place = Renumbered(part.place, kept)
    return Part(part.values[kept], batches, place, Renumbered(part.labelled_at, kept))


def of_files(files: Sequence[str | None]) -> Batches:
    """Return batches of the named files."""

    def batches(size: int) -> Iterator[Sequence[Encoded]]:
        return (files[start : start + size] for start in range(0, len(files), size))

    return batches
