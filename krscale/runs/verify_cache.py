"""Comparing what a run uses of its storage's cache with its records: data, teacher, stores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krscale.config import Experiment, read_record
from krscale.data import SPLITS_FILE, Dataset, SplitName, find_data, find_unlabelled
from krscale.data.building import CONTENT_FILE
from krscale.data.dataset import dataset_path, open_data, rebuild_data
from krscale.data.given import given_folder, rebuild_given
from krscale.data.joining import joined_path
from krscale.errors import UserError
from krscale.files import damaged, sha256
from krscale.runs.verify_files import (
    Finding,
    folders_in,
    look,
    look_at_binary,
    look_at_json,
    missing,
)
from krscale.setup.kept_probes import PROBES_FILE
from krscale.setup.methods import methods_of
from krscale.setup.networks import Networks
from krscale.setup.recipe import StoreRecipe
from krscale.setup.teacher import WEIGHTS_FILE, find_teacher
from krscale.setup.teacher_code import CODE_FILE
from krscale.setup.teacher_facts import FACTS_FILE, read_facts, rebuild_teacher
from krscale.store.manifest import MANIFEST, PLAN, check_shard, read_manifest, read_plan
from krscale.store.shard import ShardFile, is_named_by_checksum


@dataclass(frozen=True)
class Shared:
    """The folders in the cache that a run uses.

    Attributes:
        given: Folders of images that were given as objects.
        data: Folders of data sets.
        teachers: Folders of kept teachers.
        stores: Folders of stores.
        note: Why some fields hold all folders of their kind: it is not known which are the run's.
    """

    given: tuple[Path, ...]
    data: tuple[Path, ...]
    teachers: tuple[Path, ...]
    stores: tuple[Path, ...]
    note: str = ""

    @classmethod
    def of(cls, experiment: Experiment) -> Shared:
        """Find the folders of an experiment; nothing is built.

        A damaged file may be needed to find some folders: then all folders of their kind are
        returned.
        """
        cache = experiment.cache_path
        data, teachers, stores = (
            tuple(folders_in(cache / name)) for name in ("data", "teachers", "stores")
        )
        path = Path(experiment.data.path)
        given = (path,) if path.parent == given_folder(cache) else ()
        try:
            path = dataset_path(experiment.data, cache)
            dataset = find_data(experiment.data, cache)
            taught = find_unlabelled(experiment.data, dataset, cache) or dataset
            data = tuple(dict.fromkeys((path, joined_path(dataset, cache), taught.path)))
            networks = Networks.resolve(experiment, dataset)
            _, teacher = find_teacher(networks.experiment, dataset)
            teachers = (teacher,)
            recipe = StoreRecipe.find(experiment)  # covers images without labels, too
            kinds = recipe.of_features(methods_of(experiment)).values()
            stores = tuple(each.path for each in (recipe, *kinds))
        except UserError as error:
            return cls(given, data, teachers, stores, note=str(error))
        return cls(given, data, teachers, stores)


def look_at_given(folder: Path) -> Iterator[Finding]:
    """Yield findings on the arrays of images that were given as objects."""
    for path in sorted(folder.glob("*.npy")):
        yield look_at_binary(path, rebuild_given(folder))


def look_at_data(folder: Path) -> Iterator[Finding]:
    """Yield findings on the files of a data set."""
    again = rebuild_data(folder)
    yield look_at_json(folder / "manifest.json", again, lambda: open_data(folder))
    if (folder / CONTENT_FILE).exists():
        yield look_at_json(
            folder / CONTENT_FILE, again, lambda: read_record(folder / CONTENT_FILE, dict[str, Any])
        )
    if (folder / SPLITS_FILE).exists():
        yield look_at_binary(folder / SPLITS_FILE, again)
    try:
        dataset = open_data(folder)
    except UserError:  # reported above; the files can still be compared with their own digests
        for path in sorted(folder.glob("*.arrow")):
            yield look_at_binary(path, again)
        return
    for name in dataset.names:
        yield _look_at_split(dataset, name, again)


def _look_at_split(dataset: Dataset, name: SplitName, again: str) -> Finding:
    def compare() -> bool:
        dataset.split(name)
        return True

    return look(dataset.path / f"{name}.arrow", compare, again)


def look_at_teacher(folder: Path, bound: str = "") -> Iterator[Finding]:
    """Yield findings on the files of a kept teacher.

    Args:
        folder: Folder of the teacher.
        bound: Hash of the weights that the run is bound to; used if they have no digest.
    """
    again, weights = rebuild_teacher(folder), folder / WEIGHTS_FILE
    found = look_at_binary(weights, again)
    if found.state == "unverifiable" and bound and sha256(weights) == bound:
        found = Finding(weights, "ok")
    yield found
    yield look_at_binary(folder / PROBES_FILE, again)
    yield look_at_json(folder / FACTS_FILE, again, lambda: read_facts(folder))
    for gains in sorted(folder.glob("gains-grid-*.json")):
        yield look_at_json(gains, again)
    for probes in sorted(folder.glob("probes-grid-*.pt")):
        yield look_at_binary(probes, again)
    if (folder / CODE_FILE).is_file():
        yield look_at_json(folder / CODE_FILE, again)


def look_at_store(folder: Path) -> Iterator[Finding]:
    """Yield findings on the files of a store; what an unfinished store lacks is no damage."""
    again = f"Delete the folder {folder}; `krscale teach` builds the store anew."
    if (folder / PLAN).is_file():
        yield look_at_json(folder / PLAN, again, lambda: read_plan(folder))
    if not (folder / MANIFEST).is_file():
        if not (folder / PLAN).is_file():
            yield missing(folder / MANIFEST, again)
        return
    yield look_at_json(folder / MANIFEST, again, lambda: read_manifest(folder))
    try:
        manifest = read_manifest(folder)
    except UserError:  # reported above
        yield from _look_at_names(folder, again)
        return
    for shard in manifest.shards if manifest else ():

        def compare(shard: ShardFile = shard) -> bool:
            check_shard(folder, shard)
            return True

        yield look(folder / shard.file, compare, again)


def _look_at_names(folder: Path, again: str) -> Iterator[Finding]:
    """Compare shards with the checksum in their names, where there is no readable manifest."""
    for path in sorted(folder.glob("view-*/shard-*.arrow")):

        def compare(path: Path = path) -> bool:
            if not is_named_by_checksum(path):
                raise damaged(path, "its checksum is not that in its name", again)
            return True

        yield look(path, compare, again)
