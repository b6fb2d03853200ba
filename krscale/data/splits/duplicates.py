"""Find images that occur in two splits: a test must not use images that were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations

import numpy as np
import numpy.typing as npt

from krscale.data.arrow import Images, Split
from krscale.data.source import SplitName
from krscale.data.stream import Stream

Digests = npt.NDArray[np.uint64]
_DIGEST_BYTES = 8  # the chance that any two of a million images collide is 1 in 37 million


def digests(images: Images) -> Digests:
    """Return a hash of the pixels of each image `[N, C, H, W]`: `[N]`."""
    found = bytearray()
    for image in images:  # one at a time: all of them may exceed the memory
        found += blake2b(np.ascontiguousarray(image).data, digest_size=_DIGEST_BYTES).digest()
    return np.frombuffer(bytes(found), np.uint64)


def digests_of(split: Split | Stream) -> Digests:
    """Return `digests` of a split, or of a stream, which is read once."""
    if isinstance(split, Split):
        return digests(split.images)
    found = [digests(piece) for piece in split.read()]
    return np.concatenate(found) if found else np.empty(0, np.uint64)


@dataclass(frozen=True)
class Shared:
    """Images that are in two splits.

    Attributes:
        names: The two splits.
        first: `[n]`, for each such image of the second split, one of the first with the same
            pixels.
        second: `[n]`, the images of the second split.
    """

    names: tuple[SplitName, SplitName]
    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.second)


def shared_images(splits: Mapping[SplitName, Digests]) -> list[Shared]:
    """Return what each two splits share; pairs that share nothing are left out."""
    found = []
    for one, other in combinations(splits, 2):
        known, index = np.unique(splits[one], return_index=True)
        at = np.searchsorted(known, splits[other]).clip(max=max(len(known) - 1, 0))
        second = np.flatnonzero(known[at] == splits[other]) if len(known) else at[:0]
        if len(second):
            found.append(Shared((one, other), index[at[second]], second))
    return found


def groups_of_copies(found: Digests) -> npt.NDArray[np.int64]:
    """Return for each image `[N]` the number of the first image with the same pixels."""
    _, first, group = np.unique(found, return_index=True, return_inverse=True)
    numbers: npt.NDArray[np.int64] = first[group]
    return numbers
