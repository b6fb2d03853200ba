"""Weights of other programs: which table of a file they are, which prefix to drop, what is left.

Pure functions on dictionaries of tensors. Nothing is guessed in silence: what was chosen or dropped
is returned as a note, and where two choices fit, the user decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from krscale.errors import UserError, nearest

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "model_state", "weights")
"""Keys under which training scripts keep a state dict."""
NOISE = ("_orig_mod.", "module.")
"""What torch.compile and data-parallel wrappers put into names, wherever they stood."""
_COUNTERS = ("n_averaged",)
"""What averaging of weights keeps beside them."""
_LISTED = 8

State = dict[str, Tensor]


@dataclass(frozen=True)
class Fitted:
    """A state dict under a model's own names.

    Attributes:
        state: Name -> tensor, exactly the model's names and shapes.
        notes: What was chosen or dropped on the way, for the user.
    """

    state: State
    notes: tuple[str, ...] = ()


def unwrap(content: Any, place: str, key: str = "", where: str = "") -> tuple[State, list[str]]:
    """Return the state dict within the content of a file, and notes on the choice.

    Args:
        content: What the file holds.
        place: The file, and the config key that named it, for errors.
        key: The table to take, e.g. `model_ema`; or the beginning of names; empty takes the only
            usual one.
        where: The config table of the network, e.g. `"teacher"`; empty where there is none.

    Raises:
        UserError: If there is no state dict, or several and no key.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{place}: not a state dict but a {type(content).__name__}.")
    tables = {str(name): dict(table) for name, table in content.items() if _is_state(table)}
    setting = f"{where}.weights_key" if where else "weights_key"
    if key in tables:
        return tables[key], []
    if _is_state(content):
        return dict(content), []  # `key` may still be the beginning of names, see `fit`
    if key:
        guess = nearest(key, tables)
        hint = f" Did you mean {guess!r}?" if guess else ""
        raise UserError(
            f"{place}: {setting}: no weights under {key!r}.{hint} There are: "
            f"{', '.join(tables) or 'none'}."
        )
    usual = [name for name in WRAPPERS if name in tables]
    if len(usual) == 1:
        others = [name for name in tables if name != usual[0]]
        note = f"{place}: took the weights under {usual[0]!r}, not those under {', '.join(others)}"
        hint = f" ({setting} names another)"
        return tables[usual[0]], [note + hint] if others else []
    if tables:
        raise UserError(
            f"{place}: weights under {', '.join(map(repr, tables))}; {setting} says which to take, "
            f"e.g. {next(iter(tables))!r}."
        )
    raise _no_state(content, place)


def fit(state: Mapping[str, Tensor], model: nn.Module, place: str, key: str = "") -> Fitted:
    """Return a state dict under the model's own names.

    Names that do not fit are tried without what wrappers put into them, then without the one
    beginning that makes every name of the model fit.

    Args:
        state: As it was read.
        model: Whose names and shapes it must have.
        place: The file, and the config key that named it.
        key: The beginning of names to take, where several fit.

    Raises:
        UserError: If it does not fit: every name and shape; a head of another number of classes is
            named as that.
    """
    expected = model.state_dict()
    if state.keys() == expected.keys():
        _refuse_misfits(state, expected, model, place)
        return Fitted(dict(state))
    bare = without_noise(state)
    own = {_without_noise(name): name for name in expected}
    prefixes = [p for p in _prefixes(bare, own) if not key or p.rstrip(".") == key.rstrip(".")]
    whole = [p for p in prefixes if _fits({k: bare[p + k] for k in own}, expected, own)]
    if len(whole) > 1:
        listed = ", ".join(repr(prefix.rstrip(".") or "") for prefix in whole)
        raise UserError(
            f"{place}: weights that fit begin with {listed}; weights_key says which to take."
        )
    chosen = (whole or prefixes or [""])[0]
    part = {k[len(chosen) :]: v for k, v in bare.items() if k.startswith(chosen)}
    found = {own.get(name, name): value for name, value in part.items()}
    _refuse_misfits(found, expected, model, place)
    left = [k for k in bare if not k.startswith(chosen)]
    return Fitted(found, tuple(_notes(chosen, left, place)))


def refuse_non_finite(state: Mapping[str, Tensor], place: str) -> None:
    """Refuse weights with NaN or infinity.

    Raises:
        UserError: Naming the tensors.
    """
    found = [
        name
        for name, value in state.items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if found:
        raise UserError(
            f"{place}: NaN or infinity in {', '.join(shorten(found))}. The training they come from "
            "has failed; take an earlier checkpoint."
        )


def without_noise(state: Mapping[str, Tensor]) -> State:
    """Return a state dict without what torch.compile and data-parallel wrappers put into names."""
    return {_without_noise(name): value for name, value in state.items()}


def differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """One line for each kind of mismatch between a file's keys and a model's."""
    shapes = [
        f"{key} has shape {list(state[key].shape)}, the model {list(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    problems = shorten(shapes)
    if missing:
        problems.append("missing: " + ", ".join(shorten(_with_guess(missing, unexpected))))
    if unexpected:
        problems.append("unexpected: " + ", ".join(shorten(_with_guess(unexpected, missing))))
    return problems


def shorten(lines: list[str]) -> list[str]:
    """Return the first of many lines, and how many more there are."""
    rest = len(lines) - _LISTED
    return lines[:_LISTED] + ([f"... and {rest} more"] if rest > 0 else [])


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )


def _no_state(content: Mapping[Any, Any], place: str) -> UserError:
    if not content:
        return UserError(f"{place}: an empty state dict.")
    for name in (name for name in WRAPPERS if isinstance(content.get(name), Mapping)):
        if not content[name]:
            return UserError(f"{place}: an empty state dict under {name!r}.")
        content, place = content[name], f"{place}: {name}"
        break
    key, value = next(
        (k, v) for k, v in content.items() if not isinstance(k, str) or not isinstance(v, Tensor)
    )
    return UserError(
        f"{place}: not a state dict: {key!r} holds a {type(value).__name__}. "
        f"A state dict may stand by itself or under {', '.join(WRAPPERS)}."
    )


def _without_noise(name: str) -> str:
    for noise in NOISE:
        while name.startswith(noise):
            name = name[len(noise) :]
        name = name.replace(f".{noise}", ".")
    return name


def _prefixes(state: Mapping[str, Tensor], own: Mapping[str, str]) -> list[str]:
    """Return the beginnings under which the state dict has every name of the model."""
    first = next(iter(own), "")
    candidates = [k[: len(k) - len(first)] for k in state if k == first or k.endswith(f".{first}")]
    return [p for p in dict.fromkeys(candidates) if all(p + name in state for name in own)]


def _fits(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], own: Mapping[str, str]
) -> bool:
    return all(state[name].shape == expected[full].shape for name, full in own.items())


def _notes(prefix: str, left: Iterable[str], place: str) -> list[str]:
    unused = [name for name in left if name not in _COUNTERS]
    notes = [f"{place}: took the names without their beginning {prefix!r}"] if prefix else []
    if unused:
        notes.append(f"{place}: not used: {', '.join(shorten(unused))}")
    return notes


def _refuse_misfits(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], model: nn.Module, place: str
) -> None:
    problems = differences(state, expected)
    if not problems:
        return
    head = _other_head(state, expected)
    if head:
        raise UserError(f"{place} does not fit {type(model).__name__}: {head}")
    raise UserError(f"{place} does not fit {type(model).__name__}:\n  " + "\n  ".join(problems))


def _other_head(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return what to say where nothing but the number of classes differs; empty otherwise."""
    if state.keys() != expected.keys():
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
    # Looking for the nearest name takes long in a big file, and only the first keys are shown.
    named = list(keys)
    guesses = [nearest(key, others) for key in named[:_LISTED]]
    hints = [f"{k} (nearest: {g})" if g else k for k, g in zip(named, guesses, strict=False)]
    return hints + named[_LISTED:]
