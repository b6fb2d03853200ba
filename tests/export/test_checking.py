"""What a fresh process measures on the files of an export."""

import numpy as np
import pytest

from krscale.data import Split
from krscale.export.checking import _check


@pytest.mark.parametrize("broken", [1, 4])
def test_logits_that_are_not_a_number_are_found_alone_and_in_batches(broken: int) -> None:
    images, expected = np.zeros((4, 1, 2, 2), np.uint8), np.eye(4, dtype=np.float32)

    def predict(given: np.ndarray) -> np.ndarray:
        logits = expected[: len(given)].copy()
        logits[-1, 0] = np.nan if len(given) == broken else logits[-1, 0]
        return logits

    found = _check(predict, images, expected, Split(images, np.arange(4)), 1e-4)
    assert np.isnan(found["max_difference"])
