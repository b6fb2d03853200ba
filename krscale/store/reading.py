"""Reading a store: one gather of memory-mapped rows per batch, for all taps at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from krscale.errors import UserError
from krscale.store.coding import decode_features
from krscale.store.layout import EXACT_BITS, WHERE_BITS, FeatureLayout, Layout, WhereLayout
from krscale.store.manifest import (
    Manifest,
    broken_error,
    broken_shards,
    check_key,
    check_shard,
    read_manifest,
)
from krscale.store.rows import Rows, decode
from krscale.store.shard import Shard, read_shard


@dataclass
class MappedStore:
    """A store on disk, memory-mapped, so that processes on a machine share its pages.

    Attributes:
        path: Folder of the store.
        manifest: What it holds and was built from.
    """

    path: Path
    manifest: Manifest
    # Shards of one view by number: an epoch reads only one view, and every mapping keeps a file
    # open.
    _view: int = field(default=-1, init=False, repr=False)
    _shards: dict[int, Shard] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def open(cls, path: Path, key: Mapping[str, str] | None = None) -> Self:
        """Open a finished store, and refuse missing or truncated shards.

        A shard is compared with its checksum when it is first read, so opening costs nothing.

        Args:
            path: Folder of the store.
            key: Fingerprints that it must have been built from; None accepts any.

        Raises:
            UserError: If there is no finished store, its key differs (names the fingerprints), or
                shards are missing or truncated (names them).
        """
        manifest = read_manifest(path)
        if manifest is None:
            raise UserError(f"{path}: no finished store here.")
        if key is not None:
            check_key(path, manifest.plan.key, key)
        broken = broken_shards(path, manifest, checksums=False)
        if broken:
            raise broken_error(path, broken)
        return cls(path, manifest)

    @property
    def num_views(self) -> int:
        """Views of every sample."""
        return self.manifest.plan.num_views

    @property
    def num_samples(self) -> int:
        """Samples of the training split."""
        return self.manifest.plan.num_samples

    def gather(self, view: int, samples: Tensor) -> Rows:
        """Copy the rows of the samples out of the mapped shards, still encoded, on the CPU.

        Raises:
            StoreCheckError: If a shard that holds them is not what was written; names its file.
        """
        rows = self._indices(samples)
        shards = self._mapped(view, rows)
        values = torch.from_numpy(self._take({n: s.values for n, s in shards.items()}, rows))
        codes = {n: s.codes for n, s in shards.items() if s.codes is not None}
        return Rows(values, torch.from_numpy(self._take(codes, rows)) if codes else None)

    def pixel_sums(self, view: int, samples: Tensor) -> Tensor:
        """Return the check sum of each sample's pixels in a view, `[B]` int64."""
        rows = self._indices(samples)
        columns = {n: shard.pixels[:, None] for n, shard in self._mapped(view, rows).items()}
        sums = self._take(columns, rows).reshape(-1)
        return torch.from_numpy(sums.astype(np.int64))

    def verify(self) -> None:
        """Compare the checksum of every shard.

        Raises:
            UserError: Naming the shards that are not what was written.
        """
        broken = broken_shards(self.path, self.manifest, checksums=True)
        if broken:
            raise broken_error(self.path, broken)

    def info(self) -> dict[str, Any]:
        """Return size, fingerprints and errors, ready for JSON."""
        plan = self.manifest.plan
        return {
            "path": str(self.path),
            "num_bytes": self.manifest.num_bytes,
            "bytes_per_view_and_tap": plan.layout.bytes_per_view_and_tap,
            "num_samples": plan.num_samples,
            "num_views": plan.num_views,
            "num_taps": plan.layout.num_taps,
            **self._content(),
            "num_shards": len(self.manifest.shards),
            "encoding_error": list(self.manifest.encoding_error),
            "sample_error": list(plan.sample_error),
            "num_sampled": plan.num_sampled,
            "fingerprints": dict(plan.key),
        }

    def _content(self) -> dict[str, Any]:
        """Return the facts that are specific to the kind of the store, for `info`."""
        raise NotImplementedError

    def _moved(self, view: int, samples: Tensor, device: torch.device | None) -> Rows:
        """Gather the rows of the samples and copy them to the device."""
        rows = self.gather(view, samples)
        device = device or samples.device
        if device.type == "cuda":
            rows = rows.pin_memory()
        return rows.to(device)

    def _indices(self, samples: Tensor) -> npt.NDArray[np.int64]:
        rows: npt.NDArray[np.int64] = samples.cpu().numpy()
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.num_samples:
            raise IndexError(f"samples must lie in 0..{self.num_samples - 1}")
        return rows

    def _mapped(self, view: int, rows: npt.NDArray[np.int64]) -> dict[int, Shard]:
        """Return shards of a view by number, all checked, including those that hold the rows."""
        plan = self.manifest.plan
        if not 0 <= view < plan.num_views:
            raise IndexError(f"view {view} is not one of the {plan.num_views} that are stored")
        if view != self._view:
            self._shards, self._view = {}, view
        per_view = plan.num_shards // plan.num_views
        if len(self._shards) < per_view:
            for number in np.unique(rows // plan.shard_rows).tolist() if len(rows) else [0]:
                if number not in self._shards:
                    shard = self.manifest.shards[view * per_view + number]
                    check_shard(self.path, shard)
                    self._shards[number] = read_shard(self.path / shard.file)
        return self._shards

    def _take(
        self, shards: Mapping[int, npt.NDArray[Any]], rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[Any]:
        return _take(shards, rows, self.manifest.plan.shard_rows)


class KnowledgeStore(MappedStore):
    """The teacher's distributions over the classes, at every tap."""

    @property
    def layout(self) -> Layout:
        """What a row holds."""
        layout = self.manifest.plan.layout
        assert isinstance(layout, Layout)  # noqa: S101 - its key is of no other kind
        return layout

    @property
    def num_taps(self) -> int:
        """Taps of the teacher, its classifier included."""
        return self.layout.num_taps

    @property
    def num_classes(self) -> int:
        """Number of classes of a distribution."""
        return self.layout.num_classes

    @property
    def top_k(self) -> int:
        """Number of classes kept per tap."""
        return self.layout.top_k

    @property
    def temperature(self) -> float:
        """Temperature at which the probabilities were stored."""
        return self.layout.temperature

    def tap_logits(self, view: int, samples: Tensor, device: torch.device | None = None) -> Tensor:
        """Return the teacher's logits for one view of the samples.

        Args:
            view: Number of the view, from 0 to `num_views - 1`.
            samples: `[B]` int64, indices into the training split; on the CPU, they can be read
                without waiting for a GPU.
            device: Device of the result; None for the device of `samples`.

        Returns:
            `[B, D, K]` fp32: logits up to a constant per tap, with the mass of the classes that
            were not kept spread evenly over them.

        Raises:
            IndexError: If the view or a sample is not stored.
        """
        return decode(self._moved(view, samples, device), self.layout)

    def _content(self) -> dict[str, Any]:
        names = ("num_classes", "top_k", "bits", "temperature")
        return {name: getattr(self.layout, name) for name in names}


class FeatureStore(MappedStore):
    """Features of one kind, of the teacher's stages."""

    @property
    def layout(self) -> FeatureLayout | WhereLayout:
        """What a row holds."""
        layout = self.manifest.plan.layout
        assert not isinstance(layout, Layout)  # noqa: S101 - its key is of no other kind
        return layout

    def features(
        self, view: int, samples: Tensor, device: torch.device | None = None
    ) -> tuple[Tensor, ...]:
        """Return the features of one view of the samples, `[B, *shape]` fp32 each.

        Arguments and errors are those of `KnowledgeStore.tap_logits`.
        """
        return decode_features(self._moved(view, samples, device), self.layout)

    def _content(self) -> dict[str, Any]:
        bits = WHERE_BITS if isinstance(self.layout, WhereLayout) else EXACT_BITS
        return {"shapes": [list(shape) for shape in self.layout.shapes], "bits": bits}


def _take(
    shards: Mapping[int, npt.NDArray[Any]], rows: npt.NDArray[np.int64], shard_rows: int
) -> npt.NDArray[Any]:
    """Gather rows `[B, F]` of `shards`, each `[rows, F]`, as if they were concatenated.

    The loop is over the shards that hold a row, not over rows.
    """
    if shards.keys() == {0}:
        return shards[0].take(rows, axis=0)
    any_shard = next(iter(shards.values()))
    taken = np.empty((len(rows), any_shard.shape[1]), any_shard.dtype)
    order = np.argsort(rows, kind="stable")
    bounds = np.searchsorted(rows[order], np.arange(max(shards) + 2) * shard_rows)
    for number in np.flatnonzero(np.diff(bounds)).tolist():
        places = order[bounds[number] : bounds[number + 1]]
        taken[places] = shards[number].take(rows[places] - number * shard_rows, axis=0)
    return taken
