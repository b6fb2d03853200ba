"""Compare the weights of a file with a model's, and raise one error that lists all differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from krscale.errors import UserError, nearest

_LISTED = 8
_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types of weights. Smaller types are meaningful only together with their scales."""


def refuse_misfits(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], model: nn.Module, place: str
) -> None:
    """Refuse weights that do not exactly match a model.

    Args:
        state: The weights, under the model's names.
        expected: The model's state dict.
        model: The model, which the error names.
        place: The file, and the config key that named it.

    Raises:
        UserError: If weights are missing, unexpected or of another shape; the message lists them,
            and names a head with another number of classes as such. Also if their type of numbers
            differs: copied into floating point, those of a quantised network would be other
            weights.
    """
    problems = differences(state, expected)
    if not problems:
        return
    head = _other_head(state, expected)
    if head:
        raise UserError(f"{place} does not fit {type(model).__name__}: {head}")
    raise UserError(f"{place} does not fit {type(model).__name__}:\n  " + "\n  ".join(problems))


def differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return one line for each kind of mismatch between a file's keys and a model's."""
    shapes = [
        f"{key} has shape {list(state[key].shape)}, the model {list(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    numbers = [
        f"{key} is in {_dtype(state[key])}, the model's in {_dtype(expected[key])}"
        for key in expected
        if key in state and _other_numbers(state[key], expected[key])
    ]
    problems = [*shorten(shapes), *shorten(numbers)]
    if missing:
        problems.append("missing: " + ", ".join(shorten(_with_guess(missing, unexpected))))
    if unexpected:
        problems.append("unexpected: " + ", ".join(shorten(_with_guess(unexpected, missing))))
    return problems


def _other_numbers(given: Tensor, own: Tensor) -> bool:
    """Whether copying would change the numbers in more than their precision."""
    if own.is_floating_point():
        return given.dtype not in _FLOATING
    if own.is_complex():
        return False
    return given.is_complex() or (
        given.is_floating_point() and not bool((given.float() % 1 == 0).all())
    )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def shorten(lines: list[str]) -> list[str]:
    """Return the first lines, and the number of further ones."""
    rest = len(lines) - _LISTED
    return lines[:_LISTED] + ([f"... and {rest} more"] if rest > 0 else [])


def _other_head(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return a message if only the number of classes differs; empty otherwise."""
    if state.keys() != expected.keys() or any(
        _other_numbers(state[key], expected[key]) for key in expected
    ):
        return ""
    other = [key for key in expected if state[key].shape != expected[key].shape]
    counts = {(state[key].shape[0], expected[key].shape[0]) for key in other if state[key].ndim}
    same_rest = all(state[key].shape[1:] == expected[key].shape[1:] for key in other)
    layers = {key.rpartition(".")[0] for key in other}
    if len(counts) != 1 or not same_rest or len(layers) != 1:
        return ""
    theirs, ours = counts.pop()
    return (
        f"its classifier {layers.pop()!r} tells {theirs} classes apart, the data have {ours}. Take "
        f"weights that were trained on these classes."
    )


def _with_guess(keys: Iterable[str], others: list[str]) -> list[str]:
    # Finding the nearest name is slow in a large file, and only the first keys are shown.
    named = list(keys)
    guesses = [nearest(key, others) for key in named[:_LISTED]]
    hints = [f"{k} (nearest: {g})" if g else k for k, g in zip(named, guesses, strict=False)]
    return hints + named[_LISTED:]
