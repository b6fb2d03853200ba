"""Checks shared by the networks of the zoo."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from krscale.errors import UserError


def require_counts(model: str, **counts: object) -> None:
    """Refuse any argument that is not a whole number of at least 1.

    Raises:
        UserError: Naming the network, the argument and the value.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(
                f"{model}: {name} must be a whole number of at least 1 (got {value!r})."
            )


def stage_ends(blocks_per_stage: Sequence[int]) -> tuple[int, ...]:
    """Return the 1-based number of the last tap of each stage.

    Every residual block is a tap, except that the classifier stands for the last block, whose
    read-out it is: 3 stages of 2 blocks have D = 6 taps and end at taps 2, 4 and 6.
    """
    return tuple(accumulate(blocks_per_stage))
