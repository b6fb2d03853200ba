"""Building a store: once, by one process, in shards, continued where it was interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from krscale.config import StoreConfig, ViewsConfig
from krscale.data import Dataset
from krscale.errors import UserError
from krscale.store.coding import encode, lost, mean_lost
from krscale.store.layout import (
    FEW_CLASSES,
    FeatureLayout,
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
from krscale.store.shard import ShardFile, ShardId, count_shards, whole_shards, write_shard
from krscale.store.teacher_inference import AskedTeacher, OpenTeacher

SAMPLED_ROWS = 256
WAIT_SECONDS = 0.5

Report = Callable[[int, int], None]
"""Called with (views of samples done, all of them)."""


def prepare_store(
    path: Path,
    open_teacher: OpenTeacher,
    dataset: Dataset,
    views: ViewsConfig,
    config: StoreConfig,
    *,
    key: Mapping[str, str],
    device: torch.device,
    report: Report,
    layout: FeatureLayout | None = None,
    repair: bool = False,
    write: Callable[[Sequence[ShardId]], None] | None = None,
) -> Path:
    """Find the store at `path`, or build it, or continue a build that was interrupted.

    Of several processes that ask for the same store one builds it; the others wait, reporting its
    progress. A finished store is compared with its checksums, and no teacher is loaded.

    Args:
        path: Folder of the store.
        open_teacher: Loads the teacher and what reads it; called only when something is asked.
        dataset: Whose training split is stored.
        views: The view policy; every view of every sample is stored.
        config: Temperature, truncation, size of shards.
        key: Fingerprints of all that the content depends on.
        device: Where the teacher runs.
        report: Called with the views of samples done and all of them.
        layout: Of the features that are stored; None stores distributions, and chooses how.
        repair: Rebuild the broken shards of a finished store instead of refusing it.
        write: Writes the given shards by calling `write_shards` elsewhere, e.g. on several
            workers at once; None writes them here, one after another.

    Returns:
        `path`, ready for `KnowledgeStore.open`, or `FeatureStore.open`.

    Raises:
        UserError: If the store has another key, is broken, or cannot be built as configured, or
            the disk is full.
    """
    check_top_k(config.top_k, dataset.num_classes)
    total = views.num_views * dataset.num_samples["train"]

    def report_other() -> None:
        report(min(count_shards(path) * config.shard_rows, total), total)

    with _locked(path, report_other):
        manifest = read_manifest(path)
        if manifest is not None and _is_sound(path, manifest, key, repair):
            report(total, total)
            return path
        plan = manifest.plan if manifest else _begin(path, key)
        asked: AskedTeacher | None = None
        if plan is None:
            asked = AskedTeacher(open_teacher, dataset, views, device)
            plan = _plan(asked, dataset, views, config, key, layout)
            write_plan(path, plan)
        missing = _missing(path, plan)
        _check_space(path, plan, missing)
        if missing and write is not None:
            write(missing)
        elif missing:
            asked = asked or AskedTeacher(open_teacher, dataset, views, device)
            _write(path, plan, asked, missing, report)
        write_manifest(path, plan, _all_whole(path, plan))
    return path


def write_shards(
    path: Path,
    open_teacher: OpenTeacher,
    dataset: Dataset,
    views: ViewsConfig,
    shards: Sequence[ShardId],
    *,
    device: torch.device,
    report: Report,
) -> None:
    """Write some shards of a store whose build was begun; for the `write` of `prepare_store`.

    Workers may do so at the same time for different shards, while the process that called
    `prepare_store` holds the lock.

    Args:
        path: Folder of the store.
        open_teacher: Loads teacher and probes.
        dataset: Whose training split is stored.
        views: The view policy.
        shards: Which shards.
        device: Where the teacher runs.
        report: Called with the views of samples done and those of `shards`, after every batch.

    Raises:
        UserError: If no build was begun, or the disk is full.
    """
    manifest = read_manifest(path)
    plan = manifest.plan if manifest else read_plan(path)
    if plan is None:
        raise UserError(f"{path}: no store was begun here.")
    _write(path, plan, AskedTeacher(open_teacher, dataset, views, device), shards, report)


@contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    while True:
        try:
            lock.acquire(timeout=WAIT_SECONDS)
            break
        except Timeout:
            waiting()
    try:
        yield
    finally:
        lock.release()


def _is_sound(path: Path, manifest: Manifest, key: Mapping[str, str], repair: bool) -> bool:
    """Whether a finished store can be used as it is; raises when it may not be touched."""
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


def _plan(
    asked: AskedTeacher,
    dataset: Dataset,
    views: ViewsConfig,
    config: StoreConfig,
    key: Mapping[str, str],
    layout: FeatureLayout | None,
) -> StorePlan:
    """Choose the layout, unless it is given, by what encoding costs sampled rows of view 0.

    A layout that was chosen already needs one row only, which tells how many taps there are.
    """
    num_samples, num_classes = dataset.num_samples["train"], dataset.num_classes
    is_chosen = layout is not None or config.top_k > 0 or num_classes <= FEW_CLASSES
    num_sampled = 1 if is_chosen else min(num_samples, SAMPLED_ROWS)
    samples = torch.arange(num_sampled) * num_samples // num_sampled
    said = torch.cat([answer.said.cpu() for answer in asked.batches(0, samples)])
    chosen = layout or _choose(said, num_classes, config)
    return StorePlan(
        key=dict(key),
        num_views=views.num_views,
        num_samples=num_samples,
        shard_rows=config.shard_rows,
        layout=chosen,
        sample_error=tuple(mean_lost(said, chosen).tolist()),
        num_sampled=num_sampled,
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
    path: Path, plan: StorePlan, asked: AskedTeacher, shards: Sequence[ShardId], report: Report
) -> None:
    """Ask for the shards one after another; whole ones count as done from the start."""
    total = plan.num_views * plan.num_samples
    done = total - sum(stop - start for start, stop in map(plan.range_of, shards))

    def report_rows(rows: int) -> None:
        report(done + rows, total)

    report_rows(0)
    for shard in shards:
        start, stop = plan.range_of(shard)
        rows, pixels, cost = _ask_shard(plan, asked, shard, report_rows)
        write_shard(path, shard, plan.layout, rows, pixels, cost)
        done += stop - start


def _ask_shard(
    plan: StorePlan, asked: AskedTeacher, shard: ShardId, report_rows: Callable[[int], None]
) -> tuple[Rows, torch.Tensor, torch.Tensor]:
    """Return the rows of a shard, the check sums of their pixels, and what encoding lost."""
    start, stop = plan.range_of(shard)
    samples = torch.arange(start, stop)
    parts: list[tuple[torch.Tensor, ...]] = []
    cost = torch.zeros(plan.layout.num_taps, dtype=torch.float64, device=asked.device)
    num_asked = 0
    for answer in asked.batches(shard.view, samples):
        rows = encode(answer.said, plan.layout)
        cost += lost(answer.said, rows, plan.layout).sum(dim=0, dtype=torch.float64)
        tensors = (pixel_sums(answer.pixels), rows.values, rows.codes)
        parts.append(tuple(tensor for tensor in tensors if tensor is not None))
        num_asked += len(answer.pixels)
        report_rows(num_asked)
    # Kept on the device until the shard is whole: a GPU then waits for the host once per shard.
    pixels, values, *codes = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return Rows(values, codes[0] if codes else None), pixels, cost.cpu()
