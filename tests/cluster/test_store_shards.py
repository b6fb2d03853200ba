"""The shards of a store, written by the workers of a real Ray."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray
import torch

from krscale.cluster import store_shards
from krscale.cluster.store_shards import write_on_workers
from krscale.cluster.versions import own_versions
from krscale.config import Experiment, load
from krscale.data import prepare_data
from krscale.errors import UserError
from krscale.models.given import available
from krscale.models.resnet import resnet
from krscale.setup.networks import Networks
from krscale.setup.prepare import prepare
from krscale.setup.recipe import StoreRecipe
from krscale.setup.teacher import prepare_teacher
from krscale.storage import room
from krscale.storage.address import CACHE_VARIABLE
from krscale.store import KnowledgeStore, ShardId, keep_shard, plan_of_build, prepare_store

if TYPE_CHECKING:
    from drilling import Drill  # the workers, which import this file, do not find it

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SETTINGS = (
    "teacher.width=4",
    "teacher.num_epochs=1",
    "distill.probe_grid=2",
    "views.num_views=2",
    "store.shard_rows=300",
    "store.top_k=2",
    "cluster.address=local",
    "cluster.num_cpus=2",
    "cluster.wait_seconds=5",
)
CPU = torch.device("cpu")


class Quiet:
    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []

    def phase(self, title: str) -> None:
        self.steps.clear()

    def advance(self, done: int, total: int) -> None:
        self.steps.append((done, total))

    def note(self, text: str) -> None:
        pass


@pytest.fixture(scope="module", autouse=True)
def _cluster():
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data and the teacher, to copy."""
    experiment = load(None, [*SETTINGS, f"storage_path={tmp_path_factory.mktemp('made')}"])
    recipe_of(experiment)
    return experiment.cache_path


@pytest.fixture
def experiment(cache: Path, tmp_path: Path) -> Experiment:
    shutil.copytree(cache, tmp_path / "cache")
    return load(None, [*SETTINGS, f"storage_path={tmp_path}"])


@pytest.fixture
def recipe(experiment: Experiment) -> StoreRecipe:
    return recipe_of(experiment)


def recipe_of(experiment: Experiment) -> StoreRecipe:
    dataset = prepare_data(experiment.data, experiment.cache_path)
    facts, path = prepare_teacher(experiment, dataset, CPU, lambda done, total: None)
    return StoreRecipe(Networks.resolve(experiment, dataset), dataset, facts, path)


def contents(recipe: StoreRecipe) -> dict[str, bytes]:
    files = sorted(recipe.path.rglob("*"))
    return {f.relative_to(recipe.path).as_posix(): f.read_bytes() for f in files if f.is_file()}


def test_little_work_starts_no_cluster(recipe: StoreRecipe) -> None:
    assert not ray.is_initialized()
    steps: list[tuple[int, int]] = []
    write = partial(write_on_workers, recipe, lambda *step: steps.append(step))
    prepare_store(recipe.spec(CPU), lambda *step: None, write=write)
    assert not ray.is_initialized()
    assert steps[-1] == (2 * 1077, 2 * 1077)
    recipe.open().verify()


def test_the_store_of_many_is_that_of_one_byte_for_byte(
    experiment: Experiment, recipe: StoreRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_store(recipe.spec(CPU), lambda *step: None)
    alone = contents(recipe)
    assert len(alone) == 2 * 4 + 1
    moved = recipe.path.rename(recipe.path.with_name("alone"))
    monkeypatch.setattr(store_shards, "WORTH_FLOPS", 0.0)
    monkeypatch.setattr(store_shards, "write_shards", refuse)  # in this process only
    reporter = Quiet()
    prepared = prepare(experiment, reporter, write_on_workers)
    assert prepared.store_path == str(recipe.path)
    assert contents(recipe) == alone
    assert reporter.steps[-1] == (2 * 1077, 2 * 1077)
    assert [done for done, _ in reporter.steps] == sorted(done for done, _ in reporter.steps)
    # Only what is missing is written.
    lost = next((moved / "view-0001").glob("shard-00002-*"))
    (recipe.path / lost.relative_to(moved)).unlink()
    before = {file: file.stat().st_mtime_ns for file in recipe.path.rglob("*.arrow")}
    write = partial(write_on_workers, recipe, lambda *step: None)
    monkeypatch.undo()
    prepare_store(recipe.spec(CPU), lambda *step: None, repair=True, write=write)
    assert contents(recipe) == alone
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())


def test_a_machine_without_the_folder_makes_the_same_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def machine(name: str) -> None:
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / name))
        monkeypatch.setattr(room, "_held", {})

    machine("driver")
    recipe = recipe_of(load(None, [*SETTINGS, f"storage_path=file://{tmp_path / 'bucket'}"]))
    prepare_store(recipe.spec(CPU), lambda *step: None)
    alone = contents(recipe)
    recipe.path.rename(recipe.path.with_name("alone"))
    bucket = tmp_path / "bucket"
    for of_store in bucket.glob("cache/stores/*.index.json"):
        of_store.unlink()  # else it would be fetched

    def write(shards: Sequence[ShardId]) -> None:
        plan = plan_of_build(recipe.path)
        for shard in shards:
            machine(f"node {shard.view}")
            made = store_shards._write_one((recipe, plan), shard, {}, own_versions())
            assert made is not None
            machine("driver")
            keep_shard(recipe.path, made)

    prepare_store(recipe.spec(CPU), lambda *step: None, write=write)
    assert contents(recipe) == alone
    for view in range(2):
        node = tmp_path / f"node {view}"
        fetched = sorted(p.parent.name for p in node.glob("storages/*/cache/*/*") if p.is_dir())
        assert fetched == ["data", "teachers"]
    assert len(list(bucket.glob("cache/stores/*.index.json"))) == 1


@pytest.mark.drill
def test_shards_come_back_and_one_whose_worker_dies_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drill: Drill
) -> None:
    drill.injected("the end of a worker that writes a shard, on a storage that is a URI")
    drill.must_hold("every shard is there once, the lost one made again")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "machine"))
    monkeypatch.setattr(store_shards, "WORTH_FLOPS", 0.0)
    monkeypatch.setattr(store_shards, "write_shards", refuse)  # in this process only
    died, cache, write_one = tmp_path / "died", str(tmp_path / "machine"), store_shards._write_one

    def dies_once(*arguments: Any) -> Any:
        os.environ[CACHE_VARIABLE] = cache
        if not died.exists():
            died.touch()
            os._exit(1)
        return write_one(*arguments)

    monkeypatch.setattr(store_shards, "_write_one", dies_once)
    experiment = load(None, [*SETTINGS, f"storage_path=file://{tmp_path / 'bucket'}"])
    reporter = Quiet()
    prepared = prepare(experiment, reporter, write_on_workers)
    assert died.exists()
    assert reporter.steps[-1] == (2 * 1077, 2 * 1077)
    assert len(list(Path(prepared.store_path).rglob("*.arrow"))) == 2 * 4
    KnowledgeStore.open(Path(prepared.store_path)).verify()
    drill.held("all 8 shards, none written by the driver")


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("the driver wrote shards itself")


def test_a_mistake_in_a_worker_reaches_the_user_as_one(
    recipe: StoreRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_shards, "WORTH_FLOPS", 0.0)
    recipe.path.mkdir(parents=True)
    shards = [(0, number) for number in range(4)]
    with pytest.raises(UserError, match=r"^\S+: no store was begun here\.$"):
        write_on_workers(recipe, lambda *step: None, shards)  # type: ignore[arg-type]


def test_a_teacher_that_was_given_reaches_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "object:teacher.lambda"
    settings = (f"teacher.model={name}", "teacher.options={}", f"storage_path={tmp_path}")
    monkeypatch.setattr(store_shards, "WORTH_FLOPS", 0.0)
    monkeypatch.setattr(store_shards, "write_shards", refuse)
    builders = {name: lambda num_classes, width: resnet(num_classes, 1, width)}
    with available(builders):
        prepared = prepare(load(None, [*SETTINGS, *settings]), Quiet(), write_on_workers)
    assert len(list(Path(prepared.store_path).rglob("*.arrow"))) == 2 * 4
    assert prepared.teacher.model == name
