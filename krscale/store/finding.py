"""Finding the store of a key; if there is none, the error tells how the nearest store differs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from krscale.errors import UserError
from krscale.storage.folders import present
from krscale.store.manifest import (
    MANIFEST,
    Manifest,
    check_key,
    difference,
    differing,
    read_manifest,
    read_plan,
)


def find_store(path: Path, key: Mapping[str, str]) -> Manifest:
    """Return the manifest of the finished store at `path`.

    Args:
        path: Where the store would be, beside the other stores of a storage.
        key: Fingerprints that it must have been built from.

    Raises:
        UserError: If it has another key, is unfinished or is missing. If it is missing, the error
            names the store of its kind that shares most fingerprints, and those that differ.
    """
    present(path)
    manifest = read_manifest(path)
    if manifest is not None:
        check_key(path, manifest.plan.key, key)
        return manifest
    if read_plan(path) is not None:
        raise UserError(f"{path}: this store is not finished; `krscale teach` continues it.")
    missing = f"{path}: no such store; `krscale teach` builds it."
    # Stores of the same kind (distributions or features); everything else may differ.
    others = {
        at: other
        for at, other in _neighbours(path).items()
        if ("features" in other) == ("features" in key)
    }
    if not others:
        raise UserError(missing)
    near = min(others, key=lambda other: len(differing(others[other], key)))
    raise UserError(f"{missing}\nThe nearest store, {near}, was {difference(others[near], key)}")


def _neighbours(path: Path) -> dict[Path, Mapping[str, str]]:
    """Return the key of every finished store beside `path`."""
    found = {}
    for file in sorted(path.parent.glob(f"*/{MANIFEST}")):
        manifest = read_manifest(file.parent)
        if manifest is not None:
            found[file.parent] = manifest.plan.key
    return found
