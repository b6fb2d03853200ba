"""A source of the user's own: `data.source = "package.module:callable"`."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from krscale.config import DataConfig
from krscale.data.reading.arrays import Arrays, as_text, source_data
from krscale.data.reading.own_files import compared_by_name, own_splits
from krscale.data.source import Description, Report, SourceData, SplitName
from krscale.errors import UserError, unknown_name

WANTED = (
    "(images, labels), (images, labels, class_names), or a dictionary of such by split: train, and "
    "val and test where there are any"
)
_SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


class Function:
    """What a callable returns: `(images, labels[, class_names])`, or a dictionary of splits.

    It is called at every start, without arguments or with `data.path` if that is set: only its
    result shows whether the images are the same.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.function = _find(config.source)

    @property
    def own_splits(self) -> tuple[SplitName, ...]:
        """Return the splits that the callable returns."""
        return own_splits(self.found)

    @cached_property
    def found(self) -> dict[SplitName, Arrays]:
        """Return the arrays of every split."""
        where, path = f"data.source: {self.config.source}", self.config.path
        try:
            content = self.function(path) if path else self.function()
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{where}: it failed: {type(error).__name__}: {error}") from error
        parts = content if isinstance(content, Mapping) else {"train": content}
        splits: dict[SplitName, Arrays] = {}
        for name, part in parts.items():
            split = next((split for split in _SPLITS if split == name), None)
            if split is None:
                raise unknown_name("split", str(name), _SPLITS, where)
            splits[split] = _arrays(part, where, split)
        if "train" not in splits:
            raise UserError(f"{where}: it returned no training images; expected {WANTED}.")
        return splits

    def identity(self) -> Mapping[str, Any]:
        """Return the hash of what the callable returns."""
        digest = hashlib.sha256()
        for name, arrays in self.found.items():
            for array in (arrays.images, arrays.labels):
                digest.update(f"{name} {array.dtype} {array.shape}".encode())
                content = array.tolist() if array.dtype == object else np.ascontiguousarray(array)
                digest.update(repr(content).encode() if isinstance(content, list) else content.data)
        settings = self.config.files.model_dump(mode="json", include={"classes", "channels"})
        mapped = {"map_labels": True} if self.config.map_labels else {}
        known = compared_by_name(self.config)
        return {"content": digest.hexdigest(), **self._names(), **settings, **mapped, **known}

    def _names(self) -> dict[str, Any]:
        """Return the names of the classes; per split only if they differ.

        This keeps the identity of data sets built when there was one list for all splits.
        """
        of_splits = {split: arrays.names for split, arrays in self.found.items() if arrays.names}
        names = next(iter(of_splits.values()), ())
        differ = any(other != names for other in of_splits.values())
        return {"names": names} | ({"names_of_splits": of_splits} if differ else {})

    def describe(self) -> Description | None:
        """Return None: the arrays are already available."""
        return None

    def read(self, report: Report) -> SourceData:
        """Return the arrays."""
        report(1, 1)
        return source_data(self.found, self.config, self.config.source)


def _find(name: str) -> Callable[..., Any]:
    """Return the callable of a name.

    Raises:
        UserError: If its module cannot be imported, or has no such callable.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise UserError(
            f"data.source: {name!r}: cannot import {module_name!r} "
            f"({type(error).__name__}: {error}). It must be importable where krscale runs: "
            "installed, or on PYTHONPATH."
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise unknown_name(f"callable of {module_name}", attribute, public, "data.source")
    return found  # type: ignore[no-any-return]


def _arrays(part: Any, where: str, split: str) -> Arrays:
    if not isinstance(part, Sequence) or len(part) not in (2, 3) or isinstance(part, str):
        raise UserError(f"{where}: it returned {type(part).__name__}; expected {WANTED}.")
    images, labels = (_array(value, where) for value in part[:2])
    names = _names(part[2], where) if len(part) == 3 else ()
    return Arrays(images, labels, f"{where}: {split}", names)


def _names(found: Any, where: str) -> tuple[str, ...]:
    if isinstance(found, str | bytes | Mapping) or not isinstance(found, Iterable):
        raise UserError(
            f"{where}: class_names are {type(found).__name__}; expected a list of text, in the "
            "order of the numbers."
        )
    return tuple(map(as_text, found))


def _array(value: Any, where: str) -> np.ndarray[Any, Any]:
    """Convert anything that NumPy can convert, including lists and CPU tensors, to an array."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{where}: {type(value).__name__} is no array ({error}).") from None
    if array.dtype.kind == "U":
        return array.astype(object)
    return array
