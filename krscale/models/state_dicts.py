"""Read weights of other programs: select the table in a file and drop prefixes of names.

These are pure functions on dictionaries of tensors. Nothing is guessed silently: what was chosen or
dropped is returned as a note, and if two choices fit, the user must decide.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from krscale.errors import UserError, nearest
from krscale.models.misfits import refuse_misfits, shorten
from krscale.models.tied import with_tied
from krscale.models.torch_rules import Kept

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "model_state", "weights")
"""Keys under which training scripts store a state dict."""
NOISE = ("_orig_mod.", "module.")
"""Parts that torch.compile and data-parallel wrappers insert at any level of names."""
_COUNTERS = ("n_averaged", "total_ops", "total_params")
"""Entries that weight averaging and operation counters leave among the weights."""
_BATCHES = "num_batches_tracked"  # optional in PyTorch: absent before 0.4.1

State = dict[str, Tensor]


@dataclass(frozen=True)
class Fitted:
    """A state dict under a model's own names.

    Attributes:
        state: Tensors by name, with exactly the model's names and shapes.
        notes: Notes for the user on what was chosen or dropped.
    """

    state: State
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unwrapped:
    """A state dict as it is stored in a file.

    Attributes:
        state: Tensors by name.
        notes: Notes for the user on what was chosen among several tables.
        key: The rest of the user's key: the prefix of names to take, empty for all.
    """

    state: State
    notes: tuple[str, ...] = ()
    key: str = ""


def unwrap(content: Any, place: str, key: str = "", where: str = "") -> Unwrapped:
    """Return the state dict within the content of a file, and the rest of the key.

    Args:
        content: Content of the file.
        place: The file, and the config key that named it, for error messages.
        key: The table to take, e.g. `model_ema`; or a prefix of names in the only usual table; or
            both, `model_ema.backbone`. Empty takes all of the only usual table.
        where: The config table of the network, e.g. `"teacher"`; empty if there is none.

    Raises:
        UserError: If there is no state dict, or several and no key, or nothing under the key.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{place}: not a state dict but a {type(content).__name__}.")
    tables = {str(name): dict(table) for name, table in content.items() if _is_state(table)}
    setting = f"{where}.weights_key" if where else "weights_key"
    key = key.rstrip(".")
    name = max((name for name in tables if f"{key}.".startswith(f"{name}.")), key=len, default="")
    if name:
        found = Unwrapped(tables[name], key=key[len(name) + 1 :])
    elif _is_state(content):
        found = Unwrapped(dict(content), key=key)
    else:
        found = _usual(content, tables, place, setting, key)
    if found.key and not _under(found.state, found.key, place)[0]:
        raise _nothing_under(found.key, found.state, tables, f"{place}: {setting}")
    return found


def _usual(
    content: Mapping[Any, Any], tables: Mapping[str, State], place: str, setting: str, key: str
) -> Unwrapped:
    usual = [name for name in WRAPPERS if name in tables]
    if len(usual) == 1:
        others = [name for name in tables if name != usual[0]]
        note = f"{place}: took the weights under {usual[0]!r}, not those under {', '.join(others)}"
        notes = (f"{note} ({setting} names another)",) if others else ()
        return Unwrapped(tables[usual[0]], notes, key)
    if key:
        raise _nothing_under(key, {}, tables, f"{place}: {setting}")
    if tables:
        raise UserError(
            f"{place}: weights under {', '.join(map(repr, tables))}; {setting} says which to take, "
            f"e.g. {next(iter(tables))!r}."
        )
    raise _no_state(content, place)


def fit(state: Mapping[str, Tensor], model: nn.Module, place: str, key: str = "") -> Fitted:
    """Return a state dict under the model's own names.

    If names do not match, the parts inserted by wrappers are dropped, then the one prefix without
    which every name of the model is found.

    Args:
        state: The state dict as it was read.
        model: The model whose names and shapes it must have.
        place: The file, and the config key that named it.
        key: Prefix of the names to take; the others are left out.

    Raises:
        UserError: If the weights do not fit (the message lists names and shapes, and names a head
            with another number of classes as such), if no name begins with the key, or if two names
            are equal without the parts inserted by wrappers, or are one tensor in the model, but
            hold different weights.
    """
    if key:
        return _fit_under(state, model, place, key.rstrip("."))
    state = with_tied(state, model, place)
    expected = model.state_dict()
    if state.keys() == expected.keys():
        refuse_misfits(state, expected, model, place)
        return Fitted(dict(state))
    bare = with_tied(without_noise(state, place), model, place)
    own = {_without_noise(name): name for name in expected}
    needed = {bare: name for bare, name in own.items() if _last(name) != _BATCHES}
    prefixes = _prefixes(bare, needed)
    whole = [p for p in prefixes if _fits({k: bare[p + k] for k in needed}, expected, needed)]
    if len(whole) > 1:
        listed = ", ".join(repr(prefix.rstrip(".") or "") for prefix in whole)
        raise UserError(
            f"{place}: weights that fit begin with {listed}; weights_key says which to take."
        )
    chosen = (whole or prefixes or [""])[0]
    part = {k[len(chosen) :]: v for k, v in bare.items() if k.startswith(chosen)}
    found = {own.get(name, name): value for name, value in part.items()}
    found = {k: v for k, v in found.items() if k in expected or _last(k) not in _COUNTERS}
    uncounted = [k for k in expected if _last(k) == _BATCHES and k not in found]
    found |= {name: torch.zeros((), dtype=torch.long) for name in uncounted}
    refuse_misfits(found, expected, model, place)
    left = [k for k in bare if not k.startswith(chosen)]
    notes = [f"{place}: no {_BATCHES} there; taken as 0, as PyTorch does"] if uncounted else []
    return Fitted(found, (*_notes(chosen, left, place), *notes))


def non_finite(state: Mapping[str, Tensor], buffers: Collection[str] = ()) -> list[str]:
    """Return the names of the weights with NaN or infinity; those on meta tensors have neither.

    Args:
        state: Weights by name.
        buffers: Names of those that are no parameters. These may hold minus infinity, as masks of
            attention do.

    Example:
        >>> mask = {"mask": torch.tensor([0.0, -torch.inf])}
        >>> non_finite(mask), non_finite(mask, ["mask"])
        (['mask'], [])
    """
    found = []
    for name, value in state.items():
        if value.is_floating_point() and not value.is_meta:
            right = value.isfinite()
            if not bool((right | value.isneginf() if name in buffers else right).all()):
                found.append(name)
    return found


def refuse_non_finite(
    state: Mapping[str, Tensor], place: str, buffers: Collection[str] = ()
) -> None:
    """Refuse weights with NaN or infinity.

    Args:
        state: As for `non_finite`.
        place: The file, and the config key that named it, for error messages.
        buffers: As for `non_finite`.

    Raises:
        UserError: If there are such weights; the message names the tensors.
    """
    if found := non_finite(state, buffers):
        raise UserError(
            f"{place}: NaN or infinity in {', '.join(shorten(found))}. The training they come from "
            "has failed; take an earlier checkpoint."
        )


def without_noise(state: Mapping[str, Tensor], place: str) -> State:
    """Return a state dict whose names lack the parts that compile and parallel wrappers insert.

    Raises:
        UserError: If two names become equal but their weights differ.
    """
    found: State = {}
    origins: dict[str, str] = {}
    for name, value in state.items():
        bare = _without_noise(name)
        if bare in found and not torch.equal(found[bare], value):
            raise UserError(
                f"{place}: {origins[bare]!r} and {name!r} are both {bare!r} without what wrappers "
                f"put into names ({', '.join(NOISE)}), and hold different weights. Keep one set of "
                "weights in a file, or each in a table of its own."
            )
        found[bare], origins[bare] = value, name
    return found


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )


def _nothing_under(
    key: str, state: Mapping[str, Tensor], tables: Mapping[str, State], place: str
) -> UserError:
    parts = [name.split(".")[:-1] for name in state]
    beginnings = {".".join(names[: i + 1]) for names in parts for i in range(len(names))}
    guess = nearest(key, [*tables, *sorted(beginnings)])
    hint = f" Did you mean {guess!r}?" if guess else ""
    first = list(dict.fromkeys([*tables, *(names[0] for names in parts if names)]))
    there = ", ".join(shorten(first)) or "none"
    return UserError(f"{place}: no weights under {key!r}.{hint} There are: {there}.")


def _under(state: Mapping[str, Tensor], key: str, place: str) -> tuple[State, list[str]]:
    """Return the entries whose names begin with a key, without that prefix, and the other names.

    Names are compared unchanged if some begin with the key, else without the parts of wrappers.
    """
    prefix, bare_prefix = f"{key}.", _without_noise(f"{key}.")
    part = {name: value for name, value in state.items() if name.startswith(prefix)}
    left = [name for name in state if name not in part]
    if not part and bare_prefix:
        prefix = bare_prefix
        part = {k: v for k, v in state.items() if _without_noise(k).startswith(prefix)}
        left = [name for name in state if name not in part]
        part = without_noise(part, place)
    return {name[len(prefix) :]: value for name, value in part.items()}, left


def _fit_under(state: Mapping[str, Tensor], model: nn.Module, place: str, key: str) -> Fitted:
    part, left = _under(state, key, place)
    if not part:
        raise _nothing_under(key, state, {}, place)
    fitted = fit(part, model, f"{place}: {key}")
    return Fitted(fitted.state, (*_notes("", left, place), *fitted.notes))


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
    kind = "value of another package" if isinstance(value, Kept) else type(value).__name__
    return UserError(
        f"{place}: not a state dict: {key!r} holds a {kind}. "
        f"A state dict may stand by itself or under {', '.join(WRAPPERS)}."
    )


def _without_noise(name: str) -> str:
    for noise in NOISE:
        while name.startswith(noise):
            name = name[len(noise) :]
        name = name.replace(f".{noise}", ".")
    return name


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _prefixes(state: Mapping[str, Tensor], own: Mapping[str, str]) -> list[str]:
    """Return the prefixes under which the state dict has every name of the model."""
    first = next(iter(own), "")
    candidates = [k[: len(k) - len(first)] for k in state if k == first or k.endswith(f".{first}")]
    return [p for p in dict.fromkeys(candidates) if all(p + name in state for name in own)]


def _fits(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], own: Mapping[str, str]
) -> bool:
    return all(state[name].shape == expected[full].shape for name, full in own.items())


def _notes(prefix: str, left: Iterable[str], place: str) -> list[str]:
    unused = [name for name in left if _last(name) not in _COUNTERS]
    notes = [f"{place}: took the names without their beginning {prefix!r}"] if prefix else []
    if unused:
        notes.append(f"{place}: not used: {', '.join(shorten(unused))}")
    return notes
