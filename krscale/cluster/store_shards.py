"""Let all workers of a Ray cluster write shards of a store at once.

Each shard is one task that loads the teacher, runs it and writes the file. If a worker dies, only
its shard is lost, and a slow node delays no other. The process that wants the store holds its lock
and determines the missing shards (see `prepare_store`). If the storage is a URI, nodes have no
common folder: workers return the shards to that process, which keeps them and uploads the whole
store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from krscale.cluster.connect import connect
from krscale.cluster.lost_worker import lost_worker
from krscale.cluster.nodes import reach_storage
from krscale.cluster.sending import check_arrival
from krscale.cluster.versions import own_versions, refuse_other_versions
from krscale.errors import UserError
from krscale.models.given import Builder, available, given
from krscale.setup.prepare import pick_device
from krscale.setup.recipe import StoreRecipe
from krscale.storage.address import is_uri
from krscale.store import (
    Report,
    ShardBytes,
    ShardId,
    StorePlan,
    count_shards,
    keep_shard,
    make_shard,
    plan_of_build,
    write_shards,
)

POLL_SECONDS = 0.5
WORTH_FLOPS = 3e12
"""Work of the teacher, about a minute of one core, below which no workers are started.

An estimate (docs/log.md): starting workers takes 3 to 5 s. On the smallest cluster, two cores, they
save at most what a second thread of one process wastes, about 10 %."""


def write_on_workers(recipe: StoreRecipe, report: Report, shards: Sequence[ShardId]) -> None:
    """Write shards of a store that was begun, on several workers if that is faster.

    Joins or starts Ray only if there is enough work. On a cluster of one core, this process writes
    the shards. The files are the same either way.

    Args:
        recipe: What the store is built from.
        report: Called with the number of sample views that are done and their total.
        shards: The shards to write.

    Raises:
        UserError: If a worker's disk is full, or the cluster cannot be reached.
    """
    settings = recipe.experiment.train
    num_workers = 0
    if _flops(recipe, shards) >= WORTH_FLOPS:
        connect(recipe.experiment.cluster)
        resource = _resource(settings.device)
        num_workers = int(ray.cluster_resources().get(resource, 0.0))  # type: ignore[no-untyped-call]
    if num_workers < 2 or len(shards) < 2:
        write_shards(recipe.spec(pick_device(settings.device)), shards, report)
        return
    reach_storage(recipe.experiment)
    _write_all(recipe, shards, resource, report)


def _write_all(
    recipe: StoreRecipe, shards: Sequence[ShardId], resource: str, report: Report
) -> None:
    task = ray.remote(_write_one).options(
        num_cpus=1, num_gpus=int(resource == "GPU"), scheduling_strategy="SPREAD"
    )
    path, plan = recipe.path, None
    if is_uri(recipe.experiment.storage_path):
        plan = plan_of_build(path)
    shared = ray.put((recipe.without_credentials(), plan))
    teacher = recipe.experiment.teacher.model
    builders: Mapping[str, Builder] = given([teacher])
    check_arrival([teacher], builders, "teacher")
    own, versions = ray.put(builders), own_versions()
    pending = [task.remote(shared, shard, own, versions) for shard in shards]
    per_shard, num_rows = recipe.experiment.store.shard_rows, recipe.num_rows
    try:
        while pending:
            done, pending = ray.wait(pending, num_returns=len(pending), timeout=POLL_SECONDS)
            for made in ray.get(done):
                if made is not None:
                    keep_shard(path, made)
            report(min(count_shards(path) * per_shard, num_rows), num_rows)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except RayError as error:
        raise lost_worker(error, "writing the teacher's store") or error from error
    finally:
        # The next process that builds the store must be its only writer.
        for left in pending:
            ray.cancel(left, force=True)


def _write_one(
    shared: tuple[StoreRecipe, StorePlan | None],
    shard: ShardId,
    own: Mapping[str, Builder],
    versions: Mapping[str, str],
) -> ShardBytes | None:
    """Write one shard in a worker; with a plan, whose folder is elsewhere, return it instead."""
    refuse_other_versions(versions)
    torch.set_num_threads(1)
    recipe, plan = shared
    spec = recipe.here().spec(pick_device(recipe.experiment.train.device))
    with available(own):
        if plan is not None:
            return make_shard(spec, plan, shard)
        write_shards(spec, [shard], lambda done, total: None)
    return None


def _flops(recipe: StoreRecipe, shards: Sequence[ShardId]) -> float:
    rows = min(len(shards) * recipe.experiment.store.shard_rows, recipe.num_rows)
    return float(rows) * recipe.teacher.flops


def _resource(device: str) -> str:
    if device == "cpu":
        return "CPU"
    gpus = ray.cluster_resources().get("GPU", 0.0)  # type: ignore[no-untyped-call]
    return "GPU" if device == "cuda" or gpus else "CPU"
