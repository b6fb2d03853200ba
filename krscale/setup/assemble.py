"""From a config to things that run: data, teacher and store prepared once; a training per trial.

`prepare` is called by the driver; what it returns is small, picklable and holds paths, so that
any worker that sees the same storage can `Assets.open` it and build trainings. A worker opens the
assets once and builds as many trainings from them as it is given trials; it never loads the
teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from krscale.config import Experiment, with_values
from krscale.data import Dataset, Split, describe_data, open_data, prepare_data
from krscale.data.loader import Loader
from krscale.data.views import check_views
from krscale.errors import UserError
from krscale.knowledge.aggregation import split_taps
from krscale.knowledge.features import FeatureKind, stage_paths, stage_shapes
from krscale.knowledge.parameters import layers_by_tap
from krscale.knowledge.taps import TappedModel
from krscale.methods import MethodContext, build_method, method_settings, parse_method
from krscale.methods.base import Learner
from krscale.models.capacity import count_flops, num_parameters
from krscale.parallel import Workers
from krscale.setup.sizes import StudentSize, Task, build_student, build_teacher, ladder_sizes
from krscale.setup.stages import check_stages, methods_of
from krscale.setup.store_spec import StoreRecipe
from krscale.setup.teacher import TeacherFacts, prepare_teacher, resolve_taps
from krscale.store import FeatureStore, KnowledgeStore, Report, ShardId
from krscale.training.loop import Training


class Reporter(Protocol):
    """Where `prepare` says what it is doing."""

    def phase(self, title: str) -> None:
        """A new piece of work begins."""

    def advance(self, done: int, total: int) -> None:
        """So much of it is done."""


@dataclass(frozen=True)
class Prepared:
    """What all trials share, as paths and facts.

    `feature_paths` are the stores of the features that the experiment's methods need, by kind.
    """

    data_path: str
    teacher_path: str
    store_path: str
    teacher: TeacherFacts
    feature_paths: Mapping[FeatureKind, str] = field(default_factory=dict)


WriteShards = Callable[[StoreRecipe, Report, Sequence[ShardId]], None]
"""Writes the missing shards of a store, e.g. on the workers of a cluster."""


def prepare(
    experiment: Experiment, reporter: Reporter, write: WriteShards | None = None
) -> Prepared:
    """Prepare data, teacher and store; each is found in the cache or made once and kept.

    Args:
        experiment: What to prepare.
        reporter: Is told what is being done.
        write: Who writes the shards of the store; None writes them in this process.
    """
    check_methods(experiment)
    device = pick_device(experiment.train.device)
    reporter.phase("data")
    dataset = prepare_data(experiment.data, experiment.cache_path, reporter.advance)
    check_views(experiment.views, dataset.image_shape)
    check_models(experiment, dataset)
    reporter.phase("teacher")
    facts, teacher_path = prepare_teacher(experiment, dataset, device, reporter.advance)
    reporter.phase("store")
    recipe = StoreRecipe(experiment, dataset, facts, teacher_path)
    path = _prepare_store(recipe, device, reporter, write)
    features = prepare_features(recipe, methods_of(experiment), device, reporter, write)
    return Prepared(str(dataset.path), str(teacher_path), str(path), facts, features)


def prepare_features(
    recipe: StoreRecipe,
    methods: Sequence[str],
    device: torch.device,
    reporter: Reporter,
    write: WriteShards | None = None,
) -> dict[FeatureKind, str]:
    """Find or build the stores of features that methods need, and return their paths.

    Args:
        recipe: Of the store of distributions.
        methods: By name.
        device: Where the teacher runs.
        reporter: Is told what is being done.
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
    return recipe.prepare(device, reporter.advance, write=elsewhere)


@dataclass(frozen=True)
class Assets:
    """What a worker keeps open over all its trials: mapped data, mapped store, facts.

    `validation` is None when students learn from it, too.
    """

    dataset: Dataset
    validation: Split | None
    store: KnowledgeStore
    teacher: TeacherFacts
    features: Mapping[FeatureKind, FeatureStore] = field(default_factory=dict)

    @classmethod
    def open(cls, prepared: Prepared) -> Assets:
        """Map data and stores; the teacher's network is not loaded."""
        dataset = open_data(Path(prepared.data_path))
        store = KnowledgeStore.open(Path(prepared.store_path))
        features = open_features(prepared.feature_paths)
        return cls(dataset, dataset.split("val"), store, prepared.teacher, features)


def open_features(paths: Mapping[FeatureKind, str]) -> dict[FeatureKind, FeatureStore]:
    """Map the stores of features that `prepare_features` prepared."""
    return {kind: FeatureStore.open(Path(path)) for kind, path in paths.items()}


def trial_experiment(
    experiment: Experiment, method: str, values: dict[str, Any], seed: int
) -> Experiment:
    """Return the experiment of one trial: the search's own, with what was suggested."""
    fixed = {"distill.method": method, "train.seed": seed}
    return with_values(experiment, {**values, **fixed}, f"trial of {method}")


def build_training(
    experiment: Experiment, assets: Assets, width: int, workers: Workers
) -> Training:
    """Build student, method, loader and optimiser for one training.

    Args:
        experiment: All settings of this trial.
        assets: The opened data and store.
        width: The student's capacity dial.
        workers: This worker's place.
    """
    settings = experiment.train
    torch.manual_seed(settings.seed)
    student = build_student(experiment, assets.dataset, width)
    taps, _ = resolve_taps(student, experiment.student.taps, "student.taps")
    context = _method_context(student, taps, assets)
    method = build_method(
        experiment.distill.method, context, experiment.distill.model_dump(mode="python")
    )
    loader = Loader(
        assets.dataset,
        experiment.views,
        global_batch_size=settings.global_batch_size,
        seed=settings.seed,
        device=workers.device,
        store=assets.store if method.needs_teacher else None,
        features={kind: assets.features[kind] for kind in method.feature_kinds},
        rank=workers.rank,
        world_size=workers.world_size,
        gpu_share_for_images=settings.gpu_share_for_images,
    )
    read = stage_paths(student, taps) if method.feature_kinds else taps
    learner = Learner(student, read if method.needs_teacher else (), method)
    validation = (assets.dataset, assets.validation) if assets.validation is not None else None
    return Training(learner, loader, validation, settings, workers)


@dataclass(frozen=True)
class ExperimentPlan:
    """What an experiment would build, known without building it.

    Attributes:
        sizes: The ladder.
        num_taps: The teacher's taps, its classifier included.
        teacher_parameters: Parameters of the teacher.
        teacher_flops: Of one forward of one image, 2 per multiply-add.
        num_train: Images of the training split.
    """

    sizes: tuple[StudentSize, ...]
    num_taps: int
    teacher_parameters: int
    teacher_flops: int
    num_train: int


def describe(experiment: Experiment) -> ExperimentPlan:
    """Resolve an experiment without touching the disk; networks are built on meta tensors."""
    check_methods(experiment)
    source = describe_data(experiment.data, experiment.cache_path)
    check_views(experiment.views, source.image_shape)
    with torch.device("meta"):
        teacher = build_teacher(experiment, source)
    return ExperimentPlan(
        ladder_sizes(experiment, source),
        num_teacher_taps(experiment, source),
        num_parameters(teacher),
        count_flops(teacher, source.image_shape),
        source.num_train,
    )


def num_teacher_taps(experiment: Experiment, task: Task) -> int:
    """Return `D`, the taps of the teacher with its classifier, from a network on meta tensors."""
    with torch.device("meta"):
        teacher = build_teacher(experiment, task)
    taps, _ = resolve_taps(teacher, experiment.teacher.taps, "teacher.taps")
    return len(taps) + 1


def check_models(experiment: Experiment, task: Task) -> None:
    """Refuse taps and granularities that do not fit the networks, before anything trains."""
    with torch.device("meta"):
        teacher = build_teacher(experiment, task)
        student = build_student(experiment, task, width=1)
    taps, stage_ends = resolve_taps(teacher, experiment.teacher.taps, "teacher.taps")
    student_taps, _ = resolve_taps(student, experiment.student.taps, "student.taps")
    if "granularity" in method_settings(experiment.distill.method):
        split_taps(experiment.distill.granularity, len(taps) + 1, stage_ends)
    check_stages(experiment, task, taps, student, student_taps)


def check_methods(experiment: Experiment) -> None:
    """Refuse method names that nobody registered, before anything is prepared."""
    for where, names in (
        ("search.methods", experiment.search.methods),
        ("distill.method", (experiment.distill.method,)),
    ):
        for name in names:
            parse_method(name, where)


def pick_device(name: str) -> torch.device:
    """Resolve `auto`, and refuse a GPU that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device: 'cuda' was asked for, but torch sees no GPU here.")
    return torch.device(name)


def _method_context(student: nn.Module, taps: tuple[str, ...], assets: Assets) -> MethodContext:
    teacher = assets.teacher
    tapped = TappedModel(student, taps).eval()
    with torch.no_grad():
        features = tapped(torch.zeros(1, *assets.dataset.image_shape)).features
    tapped.train()
    image_shape = assets.dataset.image_shape
    return MethodContext(
        num_classes=len(assets.dataset.classes),
        num_teacher_taps=len(teacher.taps) + 1,
        stage_ends=teacher.stage_ends,
        information_gain=torch.tensor(teacher.information_gain),
        student_shapes=tuple(tuple(feature.shape[1:]) for feature in features),
        student_layers=layers_by_tap(student, taps),
        teacher_histograms=torch.tensor(teacher.histograms),
        teacher_layer_sizes=torch.tensor(teacher.layer_sizes),
        student_stage_shapes=stage_shapes(student, stage_paths(student, taps), image_shape),
        teacher_shapes={kind: store.layout.shapes for kind, store in assets.features.items()},
    )
