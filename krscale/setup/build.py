"""Build a trial's training from its settings: student, method, loader and optimiser.

A worker opens the assets once and builds the trainings of all its trials from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from krscale.config import Experiment, with_values
from krscale.data import Dataset, Split, open_data
from krscale.data.loader import Loader
from krscale.knowledge.features import FeatureKind, stage_paths, stage_shapes
from krscale.knowledge.parameters import layers_by_tap
from krscale.knowledge.taps import TappedModel
from krscale.methods import Method, MethodContext, build_method
from krscale.methods.learner import Learner
from krscale.models.preprocessing import input_shape, preprocessing_of_network
from krscale.parallel import Workers
from krscale.setup.network_builder import build_student, resolve_taps
from krscale.setup.prepare import Prepared
from krscale.setup.teacher_facts import TeacherFacts
from krscale.setup.weights import from_file, load_student_weights
from krscale.store import FeatureStore, KnowledgeStore
from krscale.training.loop import Training


@dataclass(frozen=True)
class Assets:
    """What a worker keeps open for all its trials: mapped data, mapped store and teacher facts.

    `validation` is None if students are trained on it, too. `taught` is the data for students of a
    teacher; it differs from `dataset` if there are images without labels.
    """

    dataset: Dataset
    validation: Split | None
    store: KnowledgeStore
    teacher: TeacherFacts
    features: Mapping[FeatureKind, FeatureStore] = field(default_factory=dict)
    taught: Dataset | None = None

    @classmethod
    def open(cls, prepared: Prepared) -> Assets:
        """Map data and stores on this machine, without loading the teacher's network."""
        prepared = prepared.here()
        dataset = open_data(Path(prepared.data_path))
        store = KnowledgeStore.open(Path(prepared.store_path))
        features = open_features(prepared.feature_paths)
        val = dataset.split("val")
        return cls(dataset, val, store, prepared.teacher, features, prepared.taught)

    def data_for(self, method: Method) -> Dataset:
        """Return the data that a method learns from: without a teacher, only images with labels."""
        return self.taught if self.taught is not None and method.needs_teacher else self.dataset


def open_features(paths: Mapping[FeatureKind, str]) -> dict[FeatureKind, FeatureStore]:
    """Map the feature stores that `prepare_features` prepared."""
    return {kind: FeatureStore.open(Path(path)) for kind, path in paths.items()}


def trial_experiment(
    experiment: Experiment, method: str, values: dict[str, Any], seed: int
) -> Experiment:
    """Return the experiment of one trial: the search's experiment with the suggested values."""
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
        workers: This worker's rank and device, and the number of workers.
    """
    settings = experiment.train
    torch.manual_seed(settings.seed)
    fresh = from_file(experiment.any_student)
    student = build_student(experiment, assets.dataset, width, fresh=fresh)
    load_student_weights(experiment, student)
    taps, stage_ends = resolve_taps(student, experiment.any_student.taps, "student.taps")
    context = replace(_method_context(student, taps, assets), student_stage_ends=stage_ends)
    method = build_method(experiment.distill.method, context, experiment.distill)
    loader = Loader(
        assets.data_for(method),
        experiment.views,
        global_batch_size=settings.global_batch_size,
        seed=settings.seed,
        device=workers.device,
        store=assets.store if method.needs_teacher else None,
        features={kind: assets.features[kind] for kind in method.feature_kinds},
        rank=workers.rank,
        world_size=workers.world_size,
        gpu_share_for_images=settings.gpu_share_for_images,
        preprocessing=preprocessing_of_network(student),
    )
    read = method.reads(taps, stage_paths(student, taps))
    learner = Learner(student, read.taps, method, read.stages)
    validation = (assets.dataset, assets.validation) if assets.validation is not None else None
    return Training(learner, loader, validation, settings, workers)


def _method_context(student: nn.Module, taps: tuple[str, ...], assets: Assets) -> MethodContext:
    teacher = assets.teacher
    tapped = TappedModel(student, taps).eval()
    shape = input_shape(student, assets.dataset.image_shape)
    with torch.no_grad():
        features = tapped(torch.zeros(1, *shape)).features
    tapped.train()
    return MethodContext(
        num_classes=len(assets.dataset.classes),
        num_teacher_taps=len(teacher.taps) + 1,
        stage_ends=teacher.stage_ends,
        information_gain=torch.tensor(teacher.information_gain),
        student_shapes=tuple(tuple(feature.shape[1:]) for feature in features),
        student_layers=layers_by_tap(student, taps),
        teacher_histograms=torch.tensor(teacher.histograms),
        teacher_layer_sizes=torch.tensor(teacher.layer_sizes),
        student_stage_shapes=stage_shapes(student, stage_paths(student, taps), shape),
        student_image_shape=tuple(shape),
        teacher_shapes={kind: store.layout.shapes for kind, store in assets.features.items()},
    )
