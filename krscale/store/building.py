"""Building a store: once, by one process, in shards; an interrupted build is continued."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from krscale.config import StoreConfig
from krscale.data.splits.stratify import of_every_class
from krscale.errors import UserError
from krscale.leftovers import hidden_lock
from krscale.locking import locked
from krscale.storage.folders import present, publish
from krscale.store.coding import encode, lost, mean_lost
from krscale.store.layout import (
    FEW_CLASSES,
    Layout,
    cheapest_top_k,
    check_top_k,
)
from krscale.store.manifest import (
    Manifest,
    StorePlan,
    broken_error,
    broken_shards,
    check_key,
    read_manifest,
    read_plan,
    write_manifest,
    write_plan,
)
from krscale.store.rows import Rows, choose_layout, pixel_sums
from krscale.store.shard import (
    ShardBytes,
    ShardFile,
    ShardId,
    count_shards,
    whole_shards,
    write_shard,
)
from krscale.store.spec import StoreSpec
from krscale.store.teacher_inference import TeacherInference

SAMPLED_ROWS = 256
WAIT_SECONDS = 0.5

Report = Callable[[int, int], None]
"""Called with (number of views of samples done, number of all)."""


def prepare_store(
    spec: StoreSpec,
    report: Report,
    *,
    repair: bool = False,
    write: Callable[[Sequence[ShardId]], None] | None = None,
) -> Path:
    """Find the store of `spec`, or build it, or continue a build that was interrupted.

    If several processes need the same store, one builds it; the others wait and report its
    progress. A finished store is compared with its checksums without loading the teacher.

    Args:
        spec: What the store is made of.
        report: Called with the number of views of samples done and of all.
        repair: Rebuild the broken shards of a finished store instead of refusing it.
        write: Writes the given shards by calling `write_shards` elsewhere, e.g. on several
            workers at once; None writes them here, one after another.

    Returns:
        The folder, ready for `KnowledgeStore.open`, or `FeatureStore.open`.

    Raises:
        UserError: If the store has another key, is broken, or cannot be built as configured, or
            the disk is full.
    """
    path, dataset = spec.path, spec.dataset
    check_top_k(spec.settings.top_k, dataset.num_classes)
    total = spec.num_rows

    def report_other() -> None:
        report(min(count_shards(path) * spec.settings.shard_rows, total), total)

    path.parent.mkdir(parents=True, exist_ok=True)
    finished = partial(_is_finished, path)
    with locked(hidden_lock(path), finished, report_other, WAIT_SECONDS):
        present(path)
        manifest = read_manifest(path)
        if manifest is not None and _is_sound(path, manifest, spec.key, repair):
            report(total, total)
            publish(path)
            return path
        plan = manifest.plan if manifest else _begin(path, spec.key)
        teacher: TeacherInference | None = None
        if plan is None:
            teacher = TeacherInference(spec)
            plan = _plan(teacher, spec)
            write_plan(path, plan)
        missing = _missing(path, plan)
        _check_space(path, plan, missing)
        if missing and write is not None:
            write(missing)
        elif missing:
            teacher = teacher or TeacherInference(spec)
            teacher.precision = plan.precision
            _write(path, plan, teacher, missing, report)
        write_manifest(path, plan, _all_whole(path, plan))
        publish(path)
    return path


def write_shards(spec: StoreSpec, shards: Sequence[ShardId], report: Report) -> None:
    """Write some shards of a store whose build was begun; for the `write` of `prepare_store`.

    Workers may write different shards at the same time, while the process that called
    `prepare_store` holds the lock.

    Args:
        spec: What the store is made of.
        shards: The shards to write.
        report: Called with the number of views of samples done and of all, after every batch.

    Raises:
        UserError: If no build was begun, or the disk is full.
    """
    plan = plan_of_build(spec.path)
    _write(spec.path, plan, TeacherInference(spec, plan.precision), shards, report)


def plan_of_build(path: Path) -> StorePlan:
    """Return the plan of a store whose build was begun, for `make_shard`.

    Raises:
        UserError: If no build was begun.
    """
    manifest = read_manifest(path)
    plan = manifest.plan if manifest else read_plan(path)
    if plan is None:
        raise UserError(f"{path}: no store was begun here.")
    return plan


def make_shard(spec: StoreSpec, plan: StorePlan, shard: ShardId) -> ShardBytes:
    """Make a shard for `keep_shard` on a machine that does not have the store's folder.

    Args:
        spec: What the store is made of; nothing is written to its path.
        plan: What `plan_of_build` returned on the machine with the folder.
        shard: The shard to make.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder)
        elsewhere = replace(spec, path=path)
        teacher = TeacherInference(elsewhere, plan.precision)
        _write(path, plan, teacher, [shard], lambda done, total: None)
        [file] = path.rglob("*.arrow")
        return ShardBytes(file.relative_to(path).as_posix(), file.read_bytes())


def _is_finished(path: Path) -> bool:
    return read_manifest(path) is not None


def _is_sound(path: Path, manifest: Manifest, key: Mapping[str, str], repair: bool) -> bool:
    """Whether a finished store can be used as it is; raises if it is of another key or broken."""
    check_key(path, manifest.plan.key, key)
    broken = broken_shards(path, manifest, checksums=True)
    if broken and not repair:
        raise broken_error(path, broken)
    return not broken


def _begin(path: Path, key: Mapping[str, str]) -> StorePlan | None:
    """Return the plan of an unfinished build, if there is one."""
    plan = read_plan(path)
    if plan is not None:
        check_key(path, plan.key, key)
    return plan


def _plan(teacher: TeacherInference, spec: StoreSpec) -> StorePlan:
    """Choose the layout, unless it is given, by the encoding error on sampled rows of view 0.

    If the layout follows from the settings, one row is enough, to find the number of taps.
    """
    settings, num_classes = spec.settings, spec.dataset.num_classes
    num_samples = spec.dataset.num_samples["train"]
    is_chosen = spec.layout is not None or settings.top_k > 0 or num_classes <= FEW_CLASSES
    in_bf16 = settings.teacher_precision == "bf16" and spec.layout is None
    num_sampled = 1 if is_chosen and not in_bf16 else min(num_samples, SAMPLED_ROWS)
    labels = spec.dataset.split("train", lazily=True).labels
    samples = torch.from_numpy(of_every_class(labels, num_sampled))
    outputs = torch.cat([batch.outputs.cpu() for batch in teacher.batches(0, samples)])
    chosen = spec.layout or _choose(outputs, num_classes, settings)
    error, precision = mean_lost(outputs, chosen), teacher.precision
    if in_bf16:
        teacher.precision = "bf16"
        rounded = torch.cat([batch.outputs.cpu() for batch in teacher.batches(0, samples)])
        in_all = lost(outputs, encode(rounded, chosen), chosen).mean(dim=0)
        if float(in_all.max()) <= settings.max_error:
            error, precision = in_all, "bf16"
    return StorePlan(
        key=dict(spec.key),
        num_views=spec.views.num_views,
        num_samples=num_samples,
        shard_rows=settings.shard_rows,
        layout=chosen,
        sample_error=tuple(error.tolist()),
        num_sampled=num_sampled,
        precision=precision,
    )


def _choose(tap_logits: torch.Tensor, num_classes: int, config: StoreConfig) -> Layout:
    if config.top_k > 0 or num_classes <= FEW_CLASSES:
        top_k = cheapest_top_k(config.top_k or num_classes, num_classes)
        return Layout(tap_logits.shape[1], num_classes, top_k, config.temperature)
    return choose_layout(tap_logits, config.temperature, config.max_error)


def _missing(path: Path, plan: StorePlan) -> list[ShardId]:
    whole = whole_shards(path, plan.shards)
    return [shard for shard in plan.shards if shard not in whole]


def _all_whole(path: Path, plan: StorePlan) -> dict[ShardId, ShardFile]:
    files = whole_shards(path, plan.shards)
    missing = [shard for shard in plan.shards if shard not in files]
    if missing:
        raise broken_error(path, missing)
    return files


def _check_space(path: Path, plan: StorePlan, missing: Sequence[ShardId]) -> None:
    rows = sum(stop - start for start, stop in map(plan.range_of, missing))
    needed, free = rows * plan.layout.bytes_per_row, shutil.disk_usage(path).free
    if needed > free:
        raise UserError(
            f"{path}: the store needs {needed / 1e6:,.0f} MB more and the disk has "
            f"{free / 1e6:,.0f} MB free. Free some space, or {plan.layout.advice}."
        )


def _write(
    path: Path,
    plan: StorePlan,
    teacher: TeacherInference,
    shards: Sequence[ShardId],
    report: Report,
) -> None:
    """Write the shards one after another; all other shards count as done from the start."""
    total = plan.num_views * plan.num_samples
    done = total - sum(stop - start for start, stop in map(plan.range_of, shards))

    def report_rows(rows: int) -> None:
        report(done + rows, total)

    report_rows(0)
    for shard in shards:
        start, stop = plan.range_of(shard)
        rows, pixels, cost = _compute_shard(plan, teacher, shard, report_rows)
        write_shard(path, shard, plan.layout, rows, pixels, cost)
        done += stop - start


def _compute_shard(
    plan: StorePlan, teacher: TeacherInference, shard: ShardId, report_rows: Callable[[int], None]
) -> tuple[Rows, torch.Tensor, torch.Tensor]:
    """Return the rows of a shard, the check sums of their pixels, and the encoding error."""
    start, stop = plan.range_of(shard)
    samples = torch.arange(start, stop)
    parts: list[tuple[torch.Tensor, ...]] = []
    cost = torch.zeros(plan.layout.num_taps, dtype=torch.float64, device=teacher.device)
    num_done = 0
    for batch in teacher.batches(shard.view, samples):
        rows = encode(batch.outputs, plan.layout)
        cost += lost(batch.outputs, rows, plan.layout).sum(dim=0, dtype=torch.float64)
        tensors = (pixel_sums(batch.pixels), rows.values, rows.codes)
        parts.append(tuple(tensor for tensor in tensors if tensor is not None))
        num_done += len(batch.pixels)
        report_rows(num_done)
    # Kept on the device until the shard is complete, so that a GPU waits for the host once per
    # shard.
    pixels, values, *codes = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return Rows(values, codes[0] if codes else None), pixels, cost.cpu()
