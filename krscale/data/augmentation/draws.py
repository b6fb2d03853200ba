"""Random draws that are a pure function of (seed, view, sample): a hash, not a stream.

A stream of random numbers depends on what was drawn before; a hash does not. Any process can
compute the draws of any samples in any order, on any device, and gets the same integers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

_LOW_32_BITS = 0xFFFFFFFF


def draw_integers(
    samples: Tensor, seed: int, view: int, bounds: Mapping[str, int]
) -> dict[str, Tensor]:
    """Draw one integer for each sample and each name.

    A draw depends on its name, not on which others are drawn with it: enabling one operation does
    not change the draws of the others.

    Args:
        samples: `[B]` int64, indices below 2**32.
        seed: Any integer.
        view: Number of the view.
        bounds: For each name the number of outcomes, below 2**31.

    Returns:
        For each name `[B]` int64, uniform over `0 .. bound - 1`.

    Example:
        >>> samples = torch.arange(5)
        >>> both = draw_integers(samples, seed=0, view=0, bounds={"flip": 2, "row": 9})
        >>> alone = draw_integers(samples[3:], seed=0, view=0, bounds={"row": 9})
        >>> torch.equal(alone["row"], both["row"][3:])
        True
    """
    names = tuple(bounds)
    first_key, keys, outcomes = _keys(seed, view, names, tuple(bounds.values()), samples.device)
    hashed = _mix(samples & _LOW_32_BITS ^ first_key)
    draws = _mix(hashed ^ keys).mul_(outcomes).bitwise_right_shift_(32)  # [names, B]
    return dict(zip(names, draws.unbind(), strict=True))


def _mix(values: Tensor) -> Tensor:
    """Hash 32-bit values held in int64, in place: every output bit depends on every input bit.

    The finaliser of Chris Wellons' hash prospector with multipliers below 2**30, so that no product
    exceeds the range of int64 and the result does not depend on how a device handles overflow.
    """
    values.bitwise_xor_(values >> 15).mul_(0x2C1B3C6D).bitwise_and_(_LOW_32_BITS)
    values.bitwise_xor_(values >> 12).mul_(0x297A2D39).bitwise_and_(_LOW_32_BITS)
    return values.bitwise_xor_(values >> 15)


@lru_cache(maxsize=256)
def _keys(
    seed: int, view: int, names: tuple[str, ...], bounds: tuple[int, ...], device: torch.device
) -> tuple[int, Tensor, Tensor]:
    """Return the key of the first round, and keys and bounds of the second, `[names, 1]` each."""
    keys = torch.tensor([[_key(seed, view, name)] for name in names], device=device)
    outcomes = torch.tensor([[bound] for bound in bounds], device=device)
    return _key(seed, view, ""), keys, outcomes


def _key(seed: int, view: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}/{view}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
