"""Checkpoints of a run, and exported weights: checksummed, atomic, free of code.

A checkpoint is a folder, because that is what Ray Train transfers: `state.pt`, which holds tensors
and plain values only, and `manifest.json` with its SHA-256. Weights that are exported from a run
are one `.safetensors` file. `.pt` files are read without running code
(`krscale.models.torch_files`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from krscale.config import read_record
from krscale.digests import check_file, digest_path, write_digest
from krscale.errors import DamagedFileError, UserError, nearest
from krscale.files import damaged, new_folder, sha256, write_atomic, write_json
from krscale.foreign import is_file, missing, parsing, regular
from krscale.models.file_kinds import is_safetensors, kind_of_file
from krscale.models.state_dicts import (
    Fitted,
    State,
    Unwrapped,
    fit,
    refuse_non_finite,
    unwrap,
    without_noise,
)
from krscale.models.torch_files import read_torch

STATE = "state.pt"
MANIFEST = "manifest.json"
FORMAT = 1

# Only one key, because safetensors writes several keys in no fixed order: equal weights and
# metadata then give equal bytes, and files of other programs are not mistaken for ours.
_METADATA_KEY = "krscale"
_START_ANEW = "Use an older checkpoint, or delete this one to start anew."


@dataclass(frozen=True)
class _Manifest:
    """Files of a checkpoint with their SHA-256, and a note that can be read without them."""

    format: int
    files: dict[str, str]
    note: str = ""


def save_checkpoint(path: Path, state: Mapping[str, Any], note: str = "") -> None:
    """Write `state` as the checkpoint folder `path`, replacing an older one atomically.

    Args:
        path: Folder of the checkpoint.
        state: Tensors, numbers, strings and None in dicts, lists and tuples.
        note: Text that `read_note` returns without reading the state.

    Raises:
        TypeError: If `state` holds anything else, which could not be read back without pickle.
    """
    _refuse_objects(state, "state")
    with new_folder(path) as folder:
        with (folder / STATE).open("wb") as file:  # if given a path, torch hides why a write failed
            torch.save(dict(state), file)
        files = {STATE: sha256(folder / STATE)}
        noted = {"note": note} if note else {}
        write_json(folder / MANIFEST, {"format": FORMAT, "files": files, **noted})


def read_note(path: Path) -> str:
    """Return the note of a checkpoint folder; empty if it has none.

    Raises:
        UserError: If it is not a checkpoint, or its manifest is not as written.
    """
    return _read_manifest(path).note


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint folder, with its tensors on `device`, after verifying its checksum.

    Raises:
        UserError: If the folder, a file or its content is missing or broken; names the file.
    """
    check_checkpoint(path)
    state = read_torch(path / STATE, device=device)
    if not isinstance(state, dict):
        raise damaged(path / STATE, f"it holds a {type(state).__name__}", _START_ANEW)
    return state


def check_checkpoint(path: Path, rebuild: str = _START_ANEW) -> None:
    """Verify the files of a checkpoint folder against its checksums.

    Args:
        path: The folder.
        rebuild: A sentence for the error message on what the user can do.

    Raises:
        UserError: As in `load_checkpoint`.
    """
    manifest = _read_manifest(path, rebuild)
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise UserError(
                f"{file}: missing, though the checkpoint's {MANIFEST} lists it. {rebuild}"
            )
        found = sha256(file)
        if found != expected:
            raise UserError(
                f"{file}: broken: its SHA-256 is {found[:16]}..., {MANIFEST} has "
                f"{expected[:16]}.... {rebuild}"
            )


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a `.pt` file that krscale wrote itself, on the CPU, without running code.

    Raises:
        UserError: If it is missing, not as written, unreadable or not a dictionary; names the file.
    """
    if not path.is_file():
        raise DamagedFileError(f"{path}: this file is missing.")
    check_file(path)
    content = read_torch(path, "")
    if not isinstance(content, dict):
        raise damaged(path, f"it holds a {type(content).__name__}")
    return content


def save_weights(
    path: Path,
    weights: nn.Module | Mapping[str, Tensor],
    metadata: Mapping[str, Any] | None = None,
    *,
    digest: bool = True,
) -> None:
    """Write weights as safetensors, atomically; equal content gives equal bytes.

    Readers compare the file with the digest that is written next to it (see `krscale.digests`).

    Args:
        path: The file, ending in `.safetensors`.
        weights: A module, or its state dict.
        metadata: JSON-serialisable values that are stored in the file's header.
        digest: Whether to write the digest; False if another record contains it.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    # Cloned, because tied weights share storage, which safetensors refuses to write.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    header = {_METADATA_KEY: json.dumps(dict(metadata or {}), sort_keys=True, allow_nan=False)}
    digest_path(path).unlink(missing_ok=True)  # that of a file being replaced
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata=header))
    if digest:
        write_digest(path)


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a `.safetensors` file; empty if krscale did not write it.

    Raises:
        UserError: If the file cannot be read.
    """
    check_exists(path, "")
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from None
    try:
        metadata = json.loads(header.get(_METADATA_KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"its metadata is not JSON: {error}") from None
    return dict(metadata) if isinstance(metadata, Mapping) else {}


def read_weights(path: Path, where: str = "") -> State:
    """Read a state dict of safetensors or `torch.save`, on the CPU, without running code.

    The format is determined by the content of the file, not by its name: `pytorch_model.bin` may be
    of either format.

    Removed are the prefixes that DDP and torch.compile add to every key, and the dictionary in
    which training scripts wrap a state dict.

    Args:
        path: The file.
        where: The config key that named the file, for the error.

    Raises:
        UserError: If the file is missing, unreadable, holds code or is not a state dict.
    """
    state = _read(path, where, "").state
    return without_noise(state, f"{where}: {path}" if where else str(path))


def _read(path: Path, where: str, key: str) -> Unwrapped:
    """Return the state dict of a file with its prefixes, and which table was chosen."""
    prefix = f"{where}: " if where else ""
    check_exists(path, prefix)
    check_file(path)
    if path.suffix == ".safetensors" or is_safetensors(path):
        try:
            content: Any = load_file(path)
        except (SafetensorError, OSError) as error:
            kind = kind_of_file(path)
            found = f"it is {kind}." if kind else str(error)
            raise UserError(f"{prefix}{path}: not a readable safetensors file: {found}") from None
    else:
        content = read_torch(path, prefix)
    return unwrap(content, f"{prefix}{path}", key, where.rpartition(".")[0])


def fit_weights(path: Path, model: nn.Module, where: str = "", key: str = "") -> Fitted:
    """Read the weights of a file under the names of `model`, which is not changed.

    Prefixes that wrappers added to the names are removed, and so is any common prefix without which
    all names match.

    Args:
        path: A file `read_weights` accepts.
        model: The network whose names and shapes they must have; it may be on meta tensors.
        where: The config key that named the file, for the error.
        key: The table to take if there are several, or a prefix of names.

    Raises:
        UserError: As in `read_weights`; if keys or shapes differ (the message names them, with both
            shapes); or if a weight is not finite.
    """
    place = f"{where}: {path}" if where else str(path)
    read = _read(path, where, key)
    fitted = fit(read.state, model, place, read.key)
    refuse_non_finite(fitted.state, place, dict(model.named_buffers(remove_duplicate=False)))
    return Fitted(fitted.state, (*read.notes, *fitted.notes))


def load_weights(path: Path, model: nn.Module, where: str = "", key: str = "") -> tuple[str, ...]:
    """Load the weights of a file into `model`, see `fit_weights`.

    Args:
        path: As for `fit_weights`.
        model: Gets the weights, on its own device and in its own dtype.
        where: As for `fit_weights`.
        key: As for `fit_weights`.

    Returns:
        Notes on what was chosen or dropped.
    """
    fitted = fit_weights(path, model, where, key)
    model.load_state_dict(fitted.state)
    return fitted.notes


def _refuse_objects(value: Any, place: str) -> None:
    """Refuse any value that `torch.load(weights_only=True)` would not read back."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_objects(item, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _refuse_objects(item, f"{place}[{number}]")
    elif value is not None and type(value) not in (bool, int, float, str, Tensor, nn.Parameter):
        raise TypeError(f"{place}: a checkpoint cannot hold a {type(value).__name__}")


def _read_manifest(path: Path, rebuild: str = _START_ANEW) -> _Manifest:
    file = path / MANIFEST
    if not file.is_file():
        raise UserError(f"{path}: not a checkpoint: it has no {MANIFEST}. {rebuild}")
    manifest = read_record(file, _Manifest, rebuild)
    if manifest.format != FORMAT:
        raise UserError(
            f"{file}: format {manifest.format}; this version of krscale reads format {FORMAT}."
        )
    if STATE not in manifest.files:
        raise damaged(file, f"it does not list {STATE}", rebuild)
    return manifest


def check_exists(path: Path, prefix: str) -> None:
    """Refuse a path that is not a regular file; the message names the nearest file.

    Args:
        path: The file.
        prefix: Prefix of the error message, e.g. `"teacher.weights: "`.

    Raises:
        UserError: With what was found instead.
    """
    if is_file(path):
        with parsing(f"{prefix}{path}: cannot be read"):
            regular(path)
        return
    if path.exists():
        raise UserError(f"{prefix}{path}: no regular file, but a folder, a pipe or a device.")
    siblings = {p.name for p in path.parent.iterdir()} if path.parent.is_dir() else set()
    guess = nearest(path.name, siblings - {path.name})
    hint = f" Did you mean {path.parent / guess}?" if guess else ""
    raise UserError(f"{prefix}{path}: {missing(path)}.{hint}")
