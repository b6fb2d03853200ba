"""The plan by which a store is built, and the manifest of a finished store.

`plan.json` is written before the first shard and `manifest.json` after the last: a folder with
only the first is an unfinished store, which the next build continues.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from krscale.config import as_record
from krscale.digests import CheckedFile, FileDigest
from krscale.errors import DamagedFileError, UserError
from krscale.files import damaged, has_checksum, read_json, reading, write_json
from krscale.store.layout import AnyLayout, read_layout
from krscale.store.shard import ShardFile, ShardId, read_shard

ForwardPrecision = Literal["fp32", "bf16"]
PLAN = "plan.json"
MANIFEST = "manifest.json"
FORMAT = 2
_REBUILD = "Delete the folder of the store; `krscale teach` builds it anew."


class StoreCheckError(UserError):
    """A store is not what was written, or teacher and views no longer give its content."""


@dataclass(frozen=True)
class StorePlan:
    """Everything that is decided before the first shard is written.

    Attributes:
        key: Fingerprints of what the content depends on: teacher, data, views, taps, ...
        num_views: Views of every sample.
        num_samples: `N`, the training samples.
        shard_rows: Samples of a shard.
        layout: What a row holds.
        sample_error: Encoding error at each tap, on sampled rows: the mean total variation, or the
            mean relative error of features.
        num_sampled: Number of rows on which the error was measured.
        precision: Precision of the teacher's forward.
    """

    key: Mapping[str, str]
    num_views: int
    num_samples: int
    shard_rows: int
    layout: AnyLayout
    sample_error: tuple[float, ...]
    num_sampled: int
    precision: ForwardPrecision = "fp32"

    @property
    def shards(self) -> list[ShardId]:
        """Every shard, view by view."""
        per_view = self._shards_of_a_view
        return [ShardId(view, n) for view in range(self.num_views) for n in range(per_view)]

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return self.num_views * self._shards_of_a_view

    @property
    def _shards_of_a_view(self) -> int:
        return -(-self.num_samples // self.shard_rows)

    def range_of(self, shard: ShardId) -> tuple[int, int]:
        """Return the half-open range of samples in a shard."""
        start = shard.number * self.shard_rows
        return start, min(start + self.shard_rows, self.num_samples)


@dataclass(frozen=True)
class Manifest:
    """A finished store.

    Attributes:
        plan: The plan it was built by.
        encoding_error: The same as `plan.sample_error`, over all rows.
        shards: The files, in the order of `StorePlan.shards`.
    """

    plan: StorePlan
    encoding_error: tuple[float, ...]
    shards: tuple[ShardFile, ...]

    @property
    def num_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.num_bytes for shard in self.shards)


def write_plan(path: Path, plan: StorePlan) -> None:
    """Begin the store in the folder `path`."""
    write_json(path / PLAN, {"format": FORMAT, **asdict(plan)})


def read_plan(path: Path) -> StorePlan | None:
    """Return the plan of an unfinished store, or None if none was begun.

    Raises:
        UserError: If the plan cannot be read.
    """
    content = _read(path / PLAN)
    return None if content is None else _plan(path / PLAN, content)


def write_manifest(path: Path, plan: StorePlan, files: Mapping[ShardId, ShardFile]) -> None:
    """Finish the store in the folder `path`; `files` are its shards."""
    shards = tuple(files[shard] for shard in plan.shards)
    lost = (read_shard(path / shard.file).error for shard in shards)
    sums = [math.fsum(of_tap) for of_tap in zip(*lost, strict=True)]
    num_rows = plan.num_views * plan.num_samples
    error = tuple(total / num_rows for total in sums)
    content = {"format": FORMAT, "bytes_per_view_and_tap": plan.layout.bytes_per_view_and_tap}
    content |= asdict(Manifest(plan, error, shards))
    before = path / MANIFEST  # exists if a store is repaired, whose plan the new manifest has
    write_json(before, content, checksum=not before.exists() or has_checksum(before))
    (path / PLAN).unlink(missing_ok=True)


def read_manifest(path: Path) -> Manifest | None:
    """Return the manifest of the store at `path`, or None if it is not finished.

    Raises:
        UserError: If the manifest cannot be read.
    """
    file = path / MANIFEST
    content = _read(file)
    if content is None:
        return None
    with reading(file, _REBUILD):
        plan = _plan(file, content["plan"])
        error = as_record(file, content["encoding_error"], tuple[float, ...], _REBUILD)
        shards = as_record(file, content["shards"], tuple[ShardFile, ...], _REBUILD)
    if len(shards) != plan.num_shards:
        reason = f"shards: {len(shards)} are listed, the plan has {plan.num_shards}"
        raise damaged(file, reason, _REBUILD)
    return Manifest(plan, error, shards)


def check_key(path: Path, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Refuse a store with another key.

    Raises:
        UserError: Naming every fingerprint that differs, with both values.
    """
    if dict(found) != dict(expected):
        raise UserError(
            f"{path}: the store was {difference(found, expected)}"
            "\n  Use another folder, or delete this store to build it anew."
        )


def differing(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Return the names of the fingerprints that two keys do not share."""
    return [name for name in {**found, **expected} if found.get(name) != expected.get(name)]


def difference(found: Mapping[str, str], expected: Mapping[str, str]) -> str:
    """Describe how two keys differ: a line for every fingerprint that does, with both values."""
    names = differing(found, expected)
    lines = [
        f"{name}: the store has {found.get(name, 'none')}, this run {expected.get(name, 'none')}"
        for name in names
    ]
    return "\n  ".join([f"built from another {' and '.join(names)}.", *lines])


def broken_shards(path: Path, manifest: Manifest, *, checksums: bool) -> list[ShardId]:
    """Return the shards that are missing or not what was written.

    Args:
        path: Folder of the store.
        manifest: Manifest of the store.
        checksums: Whether to read every file; otherwise only sizes are compared.
    """
    broken = []
    for shard, expected in zip(manifest.plan.shards, manifest.shards, strict=True):
        file = path / expected.file
        try:
            checked = CheckedFile(file, FileDigest.whole(expected.num_bytes, expected.sha256))
            if checksums:
                checked.check()
        except DamagedFileError:
            broken.append(shard)
    return broken


def check_shard(path: Path, shard: ShardFile) -> None:
    """Compare a shard with its checksum, unless this process has done so before.

    Args:
        path: Folder of the store.
        shard: Entry of its manifest.

    Raises:
        StoreCheckError: If it is missing or not what was written; names the file.
    """
    rebuild = "`krscale store check RUN --repair` rebuilds only the shards that are broken."
    digest = FileDigest.whole(shard.num_bytes, shard.sha256)
    try:
        CheckedFile(path / shard.file, digest, rebuild).check()
    except DamagedFileError as error:
        raise StoreCheckError(str(error)) from None


def broken_error(path: Path, shards: Iterable[ShardId]) -> StoreCheckError:
    """Build the error for shards that are missing or do not match their checksum."""
    names = [shard.stem for shard in shards]
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return StoreCheckError(
        f"{path}: {len(names)} broken shard(s), whose file is missing or does not match its "
        f"checksum: {listed}. `krscale store check RUN --repair` rebuilds only those."
    )


def _read(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    content = read_json(file, _REBUILD)
    if not isinstance(content, dict) or "format" not in content:
        raise damaged(file, "it names no format", _REBUILD)
    if content["format"] != FORMAT:
        raise UserError(
            f"{file}: format {content['format']}; this version of krscale reads format {FORMAT}. "
            "Delete the store to build it anew."
        )
    return content


def _plan(file: Path, content: Mapping[str, Any]) -> StorePlan:
    with reading(file, _REBUILD):
        layout = read_layout(content["layout"])
        as_record(file, asdict(layout), type(layout), _REBUILD)
        fields = as_record(file, content, _PlanFields, _REBUILD)
    if min(fields.num_views, fields.num_samples, fields.shard_rows) < 1:
        raise damaged(file, "a number of views, samples or rows is not positive", _REBUILD)
    return StorePlan(layout=layout, **asdict(fields))


@dataclass(frozen=True)
class _PlanFields:
    """A plan as in JSON, without its layout."""

    key: dict[str, str]
    num_views: int
    num_samples: int
    shard_rows: int
    sample_error: tuple[float, ...]
    num_sampled: int
    precision: ForwardPrecision = "fp32"
