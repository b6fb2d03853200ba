"""Layouts of the rows of a store: all or the most probable classes, in some bits; or features."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from krscale.errors import UserError

EXACT_BITS = 16
ROUNDED_BITS = (3, 4, 5, 6, 8)
MAX_CLASSES = 2**16
# Up to this many classes are all kept exactly unless fewer are configured: 24 bytes per tap.
FEW_CLASSES = 12
# Bits of each cell of a distribution over positions.
WHERE_BITS = 3


@dataclass(frozen=True)
class Layout:
    """What a row holds for each tap: one of three things.

    - every class, exactly (`top_k == num_classes`, 16 bits): probabilities in fp16;
    - the top k (`top_k < num_classes`): their classes in uint16 and probabilities in fp16, and the
      remaining mass, which is spread evenly over all others;
    - every class, rounded (fewer than 16 bits): logits, in even steps between the tap's smallest
      and largest, and the distance between those in fp16.

    Attributes:
        num_taps: `D`.
        num_classes: `K`.
        top_k: Classes kept per tap.
        temperature: Temperature at which probabilities are stored and errors are measured.
        bits: Bits of a number.
        pixel_bits: Bits of the check sum of a view's pixels.
    """

    num_taps: int
    num_classes: int
    top_k: int
    temperature: float
    bits: int = EXACT_BITS
    pixel_bits: ClassVar[int] = 32

    @property
    def is_rounded(self) -> bool:
        """Whether rows hold rounded logits."""
        return self.bits < EXACT_BITS

    @property
    def is_truncated(self) -> bool:
        """Whether rows leave classes out."""
        return self.top_k < self.num_classes

    @property
    def num_values(self) -> int:
        """Number of fp16 values per tap: probabilities and the remaining mass, or one distance."""
        if self.is_rounded:
            return 1
        return self.top_k + 1 if self.is_truncated else self.num_classes

    @property
    def advice(self) -> str:
        """How the user can make the store smaller."""
        return "keep fewer views (views.num_views) or classes (store.top_k, store.max_error)"

    @property
    def codes_per_word(self) -> int:
        """Number of rounded logits in 32 bits."""
        return 32 // self.bits

    @property
    def num_words(self) -> int:
        """Number of 32-bit words in a row of rounded logits, all taps together."""
        return -(-self.num_taps * self.num_classes // self.codes_per_word)

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one view of one sample: all taps and the check sum of its pixels."""
        if self.is_rounded:
            codes = 4 * self.num_words
        else:
            codes = 2 * self.num_taps * self.top_k if self.is_truncated else 0
        return 2 * self.num_taps * self.num_values + codes + 4

    @property
    def bytes_per_view_and_tap(self) -> float:
        """Bytes of a row per tap."""
        return self.bytes_per_row / self.num_taps


@dataclass(frozen=True)
class FeatureLayout:
    """A row of features: all their numbers in fp16, one feature after another.

    Attributes:
        shapes: Shapes of the features.
    """

    shapes: tuple[tuple[int, ...], ...]
    pixel_bits: ClassVar[int] = 32

    @property
    def num_taps(self) -> int:
        """Number of features; each has an error of its own."""
        return len(self.shapes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values in each feature."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one view of one sample and the check sum of its pixels."""
        return 2 * sum(self.sizes) + 4

    @property
    def bytes_per_view_and_tap(self) -> float:
        """Bytes of a row per feature."""
        return self.bytes_per_row / self.num_taps

    @property
    def advice(self) -> str:
        """How the user can make the store smaller."""
        return "keep fewer views (views.num_views), or leave methods on features out"


@dataclass(frozen=True)
class WhereLayout:
    """A row of distributions over the cells of stages: a few bits for each cell.

    Attributes:
        where: Rows and columns of every stage's cells; `(0, 0)` for a stage without positions.
    """

    where: tuple[tuple[int, int], ...]
    pixel_bits: ClassVar[int] = 16

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the distributions."""
        return self.where

    @property
    def num_taps(self) -> int:
        """Number of stages; each has an error of its own."""
        return len(self.where)

    @property
    def num_words(self) -> int:
        """Number of 16-bit words in a row, all stages together: `WHERE_BITS` words for 16 cells."""
        return WHERE_BITS * -(-sum(map(math.prod, self.where)) // 16)

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one view of one sample and a short check sum of its pixels."""
        return 2 * self.num_words + self.pixel_bits // 8

    @property
    def bytes_per_view_and_tap(self) -> float:
        """Bytes of a row per stage."""
        return self.bytes_per_row / self.num_taps

    @property
    def advice(self) -> str:
        """How the user can make the store smaller."""
        return "keep fewer views (views.num_views), or set distill.where_weight to 0"


AnyLayout = Layout | FeatureLayout | WhereLayout


def read_layout(content: Mapping[str, Any]) -> AnyLayout:
    """Return the layout that `dataclasses.asdict` wrote.

    Raises:
        TypeError: If it is not a known layout.

    Example:
        >>> from dataclasses import asdict
        >>> layout = FeatureLayout(((64,), (8, 4, 4)))
        >>> read_layout(asdict(layout)) == layout
        True
    """
    if "where" in content:
        where = tuple(tuple(cells) for cells in content["where"])
        return WhereLayout(**{**content, "where": where})
    if "shapes" in content:
        shapes = tuple(tuple(shape) for shape in content["shapes"])
        return FeatureLayout(**{**content, "shapes": shapes})
    return Layout(**content)


def check_top_k(top_k: int, num_classes: int) -> None:
    """Refuse a `top_k` that a store of these classes cannot have.

    Raises:
        UserError: If it exceeds the number of classes, or class numbers do not fit in 16 bits.

    Example:
        >>> check_top_k(12, 10)
        Traceback (most recent call last):
        krscale.errors.UserError: store.top_k: 12 is more than the 10 classes. ...
    """
    if num_classes > MAX_CLASSES:
        raise UserError(f"a store can number {MAX_CLASSES} classes; the data has {num_classes}.")
    if top_k > num_classes:
        raise UserError(
            f"store.top_k: {top_k} is more than the {num_classes} classes. "
            f"Allowed: 1 to {num_classes}, or 0 to choose by store.max_error."
        )


def cheapest_top_k(top_k: int, num_classes: int) -> int:
    """Return `top_k`, or `num_classes` if keeping every class takes no more space.

    A kept class takes 4 bytes (number and probability) and the remaining mass 2; without numbers,
    every class takes 2.

    Example:
        >>> cheapest_top_k(4, 10), cheapest_top_k(5, 10)  # of 18, 22 and 20 bytes
        (4, 10)
    """
    return num_classes if 4 * top_k + 2 >= 2 * num_classes else top_k
