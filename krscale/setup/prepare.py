"""Data, networks, teacher and stores of an experiment, prepared once and shared by all trials.

The result of `prepare` is small, picklable and holds paths, so that any worker with access to the
same storage can open it (`build.py`) without loading the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from krscale.config import Experiment
from krscale.data import Dataset, open_data, prepare_data, prepare_unlabelled
from krscale.data.augmentation.views import check_views, notes_on_views
from krscale.errors import UserError
from krscale.knowledge.features import FeatureKind
from krscale.methods import parse_method
from krscale.setup.found_taps import describe_taps
from krscale.setup.inputs import is_foreign
from krscale.setup.methods import check_methods, describe_taught, methods_of
from krscale.setup.networks import Networks
from krscale.setup.recipe import StoreRecipe
from krscale.setup.teacher import prepare_teacher
from krscale.setup.teacher_facts import TeacherFacts
from krscale.setup.teacher_quality import describe_teacher
from krscale.setup.weights import check_weights
from krscale.storage.address import is_uri
from krscale.storage.folders import fetched
from krscale.storage.opening import open_storage
from krscale.storage.room import DEFAULT_GB
from krscale.store import Report, ShardId, prepare_store
from krscale.store.manifest import read_manifest
from krscale.training.optimisers import check_optimiser


class Reporter(Protocol):
    """Receives the progress of `prepare`."""

    def phase(self, title: str) -> None:
        """Report that a new phase of work begins."""

    def advance(self, done: int, total: int) -> None:
        """Report how much of the phase is done."""

    def note(self, text: str) -> None:
        """Show a note that the user should read once."""


@dataclass(frozen=True)
class Setup:
    """An experiment with its data and networks, resolved once and passed on.

    Attributes:
        experiment: All settings, including the found taps of networks that define none.
        dataset: Its labelled data, on disk.
        networks: Teacher and student, resolved for this data.
        taught: Data for students of a teacher: the training images, followed by those without
            labels; `dataset` if there are none.
    """

    experiment: Experiment
    dataset: Dataset
    networks: Networks
    taught: Dataset

    @classmethod
    def resolve(cls, experiment: Experiment, reporter: Reporter) -> Setup:
        """Prepare the data and resolve the networks; refuse settings that do not fit together.

        Raises:
            UserError: If methods, views, networks or taps are refused.
        """
        check_methods(experiment)
        check_optimiser(experiment.train)
        reporter.phase("data")
        dataset = prepare_data(
            experiment.data, experiment.cache_path, reporter.advance, reporter.note
        )
        taught = prepare_unlabelled(
            experiment.data, dataset, experiment.cache_path, reporter.advance, reporter.note
        )
        if note := describe_taught(experiment, dataset.num_train, taught.num_unlabelled):
            reporter.note(note)
        check_views(experiment.views, dataset.image_shape)
        for note in notes_on_views(experiment.views, experiment.data.source):
            reporter.note(note)
        networks = Networks.resolve(experiment, dataset)
        networks.check()
        for line in (
            *describe_taps(experiment, networks.experiment),
            *networks.describe_inputs(),
            *networks.describe_where(),
        ):
            reporter.note(line)
        for note in check_weights(networks):
            reporter.note(note)
        return cls(networks.experiment, dataset, networks, taught)


@dataclass(frozen=True)
class Prepared:
    """Paths and facts that all trials share.

    `feature_paths` are the stores of the features that the experiment's methods need, by kind.
    `taught_path` is the data of the stores; empty if that is `data_path`. `storage` is the storage
    that the paths are in, and `cache_gb` the maximum size of a machine's cache of it if it is not a
    folder.
    """

    data_path: str
    teacher_path: str
    store_path: str
    teacher: TeacherFacts
    feature_paths: Mapping[FeatureKind, str] = field(default_factory=dict)
    taught_path: str = ""
    storage: str = ""
    cache_gb: float = DEFAULT_GB

    def here(self) -> Prepared:
        """Return the same with paths on this machine, after fetching missing files.

        If the storage is a folder that all machines share, nothing changes. The teacher is not
        fetched, since no trial loads it.

        Raises:
            UserError: If the storage cannot be read or no longer has the files.
        """
        if not is_uri(self.storage):
            return self
        open_storage(self.storage, self.cache_gb)

        def local(path: str) -> str:
            return str(fetched(path, self.storage))

        return replace(
            self,
            data_path=local(self.data_path),
            store_path=local(self.store_path),
            feature_paths={kind: local(path) for kind, path in self.feature_paths.items()},
            taught_path=local(self.taught_path) if self.taught_path else "",
        )

    @property
    def taught(self) -> Dataset | None:
        """The data of the stores; None if that is the labelled data alone."""
        return open_data(Path(self.taught_path)) if self.taught_path else None

    def params(self, method: str) -> dict[str, int]:
        """Return the MLflow parameters on a method's images; empty if all images have labels.

        Args:
            method: Name of the method. Without a teacher, it uses no images without labels.
        """
        taught = self.taught
        if taught is None:
            return {}
        needs_teacher = parse_method(method)[0].needs_teacher
        return {"data.num_unlabelled": taught.num_unlabelled if needs_teacher else 0}


WriteShards = Callable[[StoreRecipe, Report, Sequence[ShardId]], None]
"""Writes the missing shards of a store, e.g. on the workers of a cluster."""
TrainTeacher = Callable[[Experiment, Dataset, Reporter, Path, nn.Module], None]
"""Trains a teacher's new network in place, on `teacher.num_workers` workers; the folder holds the
state of an unfinished training."""


def prepare(
    experiment: Experiment,
    reporter: Reporter,
    write: WriteShards | None = None,
    train: TrainTeacher | None = None,
) -> Prepared:
    """Prepare data, teacher and stores; each is found in the cache, or made once and stored there.

    Args:
        experiment: What to prepare.
        reporter: Receives the progress.
        write: Writes the shards of the store; None writes them in this process.
        train: Trains a teacher on several workers; with None, such a teacher is refused.
    """
    pick_device(experiment.train.device)  # refuses a missing GPU before any work
    return prepare_knowledge(Setup.resolve(experiment, reporter), reporter, write, train)


def prepare_knowledge(
    setup: Setup,
    reporter: Reporter,
    write: WriteShards | None = None,
    train: TrainTeacher | None = None,
) -> Prepared:
    """Prepare the teacher and stores of a resolved setup; see `prepare`."""
    experiment, dataset = setup.experiment, setup.dataset
    device = pick_device(experiment.train.device)
    reporter.phase("teacher")
    facts, teacher_path = prepare_teacher(
        experiment,
        dataset,
        device,
        reporter.advance,
        partial(train, experiment, dataset, reporter) if train else None,
    )
    if is_foreign(experiment.teacher):
        gain = facts.information_gain
        reporter.note(describe_teacher(facts.val_accuracy, gain, facts.taps))
    reporter.phase("store")
    recipe = StoreRecipe(setup.networks, setup.taught, facts, teacher_path)
    path = _prepare_store(recipe, device, reporter, write)
    features = prepare_features(recipe, methods_of(experiment), device, reporter, write)
    taught_path = "" if setup.taught is dataset else str(setup.taught.path)
    return Prepared(
        str(dataset.path),
        str(teacher_path),
        str(path),
        facts,
        features,
        taught_path,
        experiment.storage_path,
        experiment.cluster.cache_gb,
    )


def prepare_features(
    recipe: StoreRecipe,
    methods: Sequence[str],
    device: torch.device,
    reporter: Reporter,
    write: WriteShards | None = None,
) -> dict[FeatureKind, str]:
    """Find or build the stores of features that methods need, and return their paths.

    Args:
        recipe: Recipe of the store of distributions.
        methods: Names of the methods.
        device: Device that the teacher runs on.
        reporter: Receives the progress.
        write: As for `prepare`.
    """
    paths: dict[FeatureKind, str] = {}
    for kind, of_kind in recipe.of_features(methods).items():
        reporter.phase(f"store {kind}")
        paths[kind] = str(_prepare_store(of_kind, device, reporter, write))
    return paths


def _prepare_store(
    recipe: StoreRecipe, device: torch.device, reporter: Reporter, write: WriteShards | None
) -> Path:
    """Find the store of a recipe, or build it."""
    elsewhere = partial(write, recipe, reporter.advance) if write else None
    path = prepare_store(recipe.spec(device), reporter.advance, write=elsewhere)
    if recipe.kind is None and (note := _fallback(recipe.experiment, path)):
        reporter.note(note)
    return path


def _fallback(experiment: Experiment, path: Path) -> str:
    """Return a note if the teacher runs in fp32 although bf16 was requested; else empty."""
    manifest = read_manifest(path)
    asked = experiment.store.teacher_precision
    if manifest is None or manifest.plan.precision == asked:
        return ""
    return (
        f"store.teacher_precision: {asked} would cost a tap more than store.max_error = "
        f"{experiment.store.max_error:g} on {manifest.plan.num_sampled} sampled views, so the "
        f"teacher's forward is in {manifest.plan.precision}"
    )


def pick_device(name: str) -> torch.device:
    """Resolve `auto`, and refuse a GPU that is not available."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "train.device: 'cuda' is set, but torch sees no GPU on this machine. With 'auto' "
            "a GPU is used where there is one, on other nodes of a cluster as well."
        )
    return torch.device(name)
