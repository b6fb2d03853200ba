"""The recipe of a store: all that the store of an experiment is built from, and where it is.

A recipe holds paths and settings only, so that it travels to any worker that sees the same
storage; the teacher's network is loaded where it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from krscale.config import Experiment, fingerprint
from krscale.data import Dataset, find_data
from krscale.knowledge.taps import TappedModel
from krscale.store import (
    Check,
    KnowledgeStore,
    Report,
    ShardId,
    broken_shards,
    check_store,
    find_store,
    prepare_store,
    write_shards,
)
from krscale.teacher import TeacherFacts, find_teacher, open_teacher


@dataclass(frozen=True)
class StoreRecipe:
    """All that the store of an experiment is built from; picklable.

    Attributes:
        experiment: View policy and store settings.
        dataset: The prepared data.
        teacher: Facts of the prepared teacher.
        teacher_path: Its folder.
    """

    experiment: Experiment
    dataset: Dataset
    teacher: TeacherFacts
    teacher_path: Path

    @classmethod
    def find(cls, experiment: Experiment) -> StoreRecipe:
        """Look up what an earlier start prepared; nothing is built or trained.

        Raises:
            UserError: If data or teacher of this experiment are not in its storage.
        """
        dataset = find_data(experiment.data, experiment.cache_path)
        facts, teacher_path = find_teacher(experiment, dataset)
        return cls(experiment, dataset, facts, teacher_path)

    @property
    def key(self) -> dict[str, str]:
        """Fingerprints of all that the content of the store depends on."""
        return {
            "teacher": self.teacher.fingerprint,
            "data": self.dataset.fingerprint,
            "views": fingerprint(self.experiment.views.model_dump(mode="json")),
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
        return prepare_store(
            self.path,
            self._opener(device),
            self.dataset,
            self.experiment.views,
            self.experiment.store,
            key=self.key,
            device=device,
            report=report,
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

    def open(self) -> KnowledgeStore:
        """Open the finished store.

        Raises:
            UserError: If it is missing, unfinished or of another key.
            StoreCheckError: If shards are missing or truncated.
        """
        find_store(self.path, self.key)
        return KnowledgeStore.open(self.path, self.key)

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
            return teacher.tapped.to(device), teacher.probes.to(device)

        return open_tapped
