"""The source `digits`: real handwriting that is installed with krscale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from krscale.config import DataConfig
from krscale.data.arrow import Split
from krscale.data.source import Description, Report, SourceData, SplitName, refuse_path


class Digits:
    """The 1,797 handwritten digits of 8x8 pixels that ship with scikit-learn.

    Source: Alpaydin and Kaynak, *Optical Recognition of Handwritten Digits*, UCI, 1998 (its test
    set). Grey levels 0..16 are spread over 0..255, rounded to the nearest.
    """

    own_splits: ClassVar[tuple[SplitName, ...]] = ()

    def __init__(self, config: DataConfig) -> None:
        refuse_path("digits", config)

    def identity(self) -> Mapping[str, Any]:
        """Return nothing: the digits have no settings."""
        return {}

    def describe(self) -> Description | None:
        """Return None: reading takes no longer."""
        return None

    def read(self, report: Report) -> SourceData:
        """Return the digits as grey images `[1797, 1, 8, 8]`."""
        from sklearn.datasets import load_digits  # slower to import than a cache to open

        digits = load_digits()
        levels = digits.images.astype(np.int64)
        images = ((levels * 255 + 8) // 16).astype(np.uint8)[:, None]
        labels = digits.target.astype(np.int64)
        report(len(labels), len(labels))
        return SourceData(
            tuple(str(digit) for digit in range(10)), {"train": Split(images, labels)}
        )
