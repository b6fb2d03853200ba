"""The recipe of a store: all that the store of an experiment is built from, and where it is.

A recipe holds paths and settings only, so that it travels to any worker that sees the same
storage; the teacher's network is loaded where it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from krscale.config import Experiment, fingerprint
from krscale.data import Dataset, find_data
from krscale.knowledge.features import FeatureKind, FeatureReader, Shapes, feature_shapes
from krscale.knowledge.taps import TappedModel
from krscale.setup.stages import needed_kinds, teacher_stages
from krscale.setup.teacher import TeacherFacts, find_teacher, open_teacher
from krscale.store import (
    Check,
    FeatureLayout,
    FeatureStore,
    KnowledgeStore,
    MappedStore,
    Report,
    ShardId,
    broken_shards,
    check_store,
    find_store,
    prepare_store,
    write_shards,
)


@dataclass(frozen=True)
class StoreRecipe:
    """All that a store of an experiment is built from; picklable.

    Attributes:
        experiment: View policy and store settings.
        dataset: The prepared data.
        teacher: Facts of the prepared teacher.
        teacher_path: Its folder.
        kind: Of the features that are stored; None stores the taps' distributions.
    """

    experiment: Experiment
    dataset: Dataset
    teacher: TeacherFacts
    teacher_path: Path
    kind: FeatureKind | None = None

    @classmethod
    def find(cls, experiment: Experiment) -> StoreRecipe:
        """Look up what an earlier start prepared; nothing is built or trained.

        Raises:
            UserError: If data or teacher of this experiment are not in its storage.
        """
        dataset = find_data(experiment.data, experiment.cache_path)
        facts, teacher_path = find_teacher(experiment, dataset)
        return cls(experiment, dataset, facts, teacher_path)

    def of_features(self, methods: Iterable[str]) -> dict[FeatureKind, StoreRecipe]:
        """Return the recipes of the further stores that methods need, by kind.

        Each kind has a store of its own: a method that is added to a search costs the features it
        needs, and nothing that is there is built again.
        """
        return {kind: replace(self, kind=kind) for kind in needed_kinds(methods)}

    @cached_property
    def stages(self) -> tuple[tuple[str, ...], Shapes]:
        """Paths and shapes of the teacher's stages."""
        return teacher_stages(self.experiment, self.dataset, self.teacher.taps)

    @property
    def key(self) -> dict[str, str]:
        """Fingerprints of all that the content of the store depends on."""
        shared = {
            "teacher": self.teacher.fingerprint,
            "data": self.dataset.fingerprint,
            "views": fingerprint(self.experiment.views.model_dump(mode="json")),
        }
        if self.kind is not None:
            return shared | {"features": fingerprint([self.kind, *self.stages])}
        return shared | {
            "taps": fingerprint(self.teacher.taps),
            "store": fingerprint(self.experiment.store.model_dump(mode="json")),
        }

    @property
    def path(self) -> Path:
        """Folder of the store."""
        return self.experiment.cache_path / "stores" / fingerprint(self.key)

    @property
    def num_rows(self) -> int:
        """Views of samples in the whole store."""
        return self.experiment.views.num_views * self.dataset.num_samples["train"]

    def prepare(
        self,
        device: torch.device,
        report: Report,
        *,
        repair: bool = False,
        write: Callable[[Sequence[ShardId]], None] | None = None,
    ) -> Path:
        """Find the store or build it; see `prepare_store`."""
        layout = None
        if self.kind is not None:
            layout = FeatureLayout(feature_shapes(self.kind, self.stages[1]))
        return prepare_store(
            self.path,
            self._opener(device),
            self.dataset,
            self.experiment.views,
            self.experiment.store,
            key=self.key,
            device=device,
            report=report,
            layout=layout,
            repair=repair,
            write=write,
        )

    def write(self, shards: Sequence[ShardId], device: torch.device, report: Report) -> None:
        """Write some shards of a store that was begun; see `write_shards`."""
        write_shards(
            self.path,
            self._opener(device),
            self.dataset,
            self.experiment.views,
            shards,
            device=device,
            report=report,
        )

    def open(self) -> MappedStore:
        """Open the finished store.

        Raises:
            UserError: If it is missing, unfinished or of another key.
            StoreCheckError: If shards are missing or truncated.
        """
        find_store(self.path, self.key)
        kind = KnowledgeStore if self.kind is None else FeatureStore
        return kind.open(self.path, self.key)

    def broken(self) -> list[ShardId]:
        """Return the shards of the finished store that are not what was written.

        Raises:
            UserError: If it is missing, unfinished or of another key.
        """
        manifest = find_store(self.path, self.key)
        return broken_shards(self.path, manifest, checksums=True)

    def check(self, device: torch.device, num_rows: int) -> Check:
        """Ask the teacher again about a sample of rows; see `check_store`."""
        find_store(self.path, self.key)
        return check_store(
            self.path,
            self._opener(device),
            self.dataset,
            self.experiment.views,
            key=self.key,
            device=device,
            num_rows=num_rows,
        )

    def _opener(self, device: torch.device) -> Callable[[], tuple[TappedModel, nn.Module]]:
        def open_tapped() -> tuple[TappedModel, nn.Module]:
            teacher = open_teacher(self.experiment, self.dataset, self.teacher_path)
            if self.kind is None:
                return teacher.tapped.to(device), teacher.probes.to(device)
            tapped = TappedModel(teacher.tapped.model, self.stages[0])
            return tapped.to(device), FeatureReader(self.kind)

        return open_tapped
