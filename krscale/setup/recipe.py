"""The stores that an experiment needs, in a form that can be sent to workers.

A recipe holds only paths and settings, for workers with access to the storage. The teacher's
network is loaded where it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from krscale.config import Experiment, fingerprint
from krscale.data import Dataset, find_data, find_unlabelled, open_data
from krscale.errors import UserError
from krscale.knowledge.features import FeatureKind, FeatureReader, feature_shapes
from krscale.knowledge.taps import TappedModel
from krscale.knowledge.where import token_grids
from krscale.setup.kept_probes import grid_name, probe_grid
from krscale.setup.methods import needed_kinds
from krscale.setup.networks import Networks
from krscale.setup.teacher import find_teacher, open_teacher
from krscale.setup.teacher_facts import TeacherFacts
from krscale.storage.address import is_uri
from krscale.storage.folders import fetched
from krscale.storage.opening import open_storage
from krscale.store import (
    WHERE_BITS,
    FeatureLayout,
    FeatureStore,
    KnowledgeStore,
    MappedStore,
    StoreSpec,
    WhereLayout,
    find_store,
)


@dataclass(frozen=True)
class StoreRecipe:
    """One store of an experiment; picklable.

    Attributes:
        networks: Networks of the experiment, with its view policy and store settings.
        dataset: The prepared data whose training split is stored; `Setup.taught` if there are
            images without labels.
        teacher: Facts of the prepared teacher.
        teacher_path: Folder of the teacher.
        kind: Kind of the features that are stored; None stores the taps' distributions.
    """

    networks: Networks
    dataset: Dataset
    teacher: TeacherFacts
    teacher_path: Path
    kind: FeatureKind | None = None

    @classmethod
    def find(cls, experiment: Experiment) -> StoreRecipe:
        """Look up what an earlier start prepared, without building or training anything.

        Raises:
            UserError: If data or teacher of this experiment are not in its storage.
        """
        dataset = find_data(experiment.data, experiment.cache_path)
        taught = find_unlabelled(experiment.data, dataset, experiment.cache_path)
        if taught is None:
            raise UserError(
                f"data.unlabelled: {experiment.data.unlabelled}: these images were never prepared; "
                "`krscale teach` does so."
            )
        networks = Networks.resolve(experiment, dataset)
        facts, teacher_path = find_teacher(networks.experiment, dataset)
        return cls(networks, taught, facts, teacher_path)

    @property
    def experiment(self) -> Experiment:
        """The experiment that the store belongs to."""
        return self.networks.experiment

    def here(self) -> StoreRecipe:
        """Return the same with data and teacher on this machine, after fetching missing files.

        If the storage is a folder that all machines share, nothing changes.

        Raises:
            UserError: If the storage cannot be read or no longer has the files.
        """
        storage = self.experiment.storage_path
        if not is_uri(storage):
            return self
        open_storage(storage, self.experiment.cluster.cache_gb)
        dataset = open_data(fetched(self.dataset.path, storage))
        return replace(self, dataset=dataset, teacher_path=fetched(self.teacher_path, storage))

    def without_credentials(self) -> StoreRecipe:
        """Return the same without credentials, for workers."""
        networks = replace(self.networks, experiment=self.experiment.without_credentials())
        return replace(self, networks=networks)

    def of_features(self, methods: Iterable[str]) -> dict[FeatureKind, StoreRecipe]:
        """Return the recipes of the additional stores that methods need, by kind.

        Each kind has its own store: adding a method to a search builds only the features that it
        needs, and no existing store is rebuilt.
        """
        kinds = needed_kinds(methods)
        if self.networks.compares_where(methods):
            kinds.append("where")
        return {kind: replace(self, kind=kind) for kind in kinds}

    @property
    def key(self) -> dict[str, str]:
        """Fingerprints of all that the content of the store depends on."""
        shared = {
            "teacher": self.teacher.fingerprint,
            "data": self.dataset.fingerprint,
            "views": fingerprint(self.experiment.views.identity()),
        }
        if self.kind is not None:
            network = self.networks.teacher
            content: list[object] = [self.kind, network.stage_paths, network.stage_shapes]
            if self.kind == "where":
                shape = network.image_shape
                content += [feature_shapes("where", network.stage_shapes, shape), WHERE_BITS]
                # For square images, the grids follow from the shapes; leaving them out keeps
                # earlier keys valid.
                grids = token_grids(network.stage_shapes, shape) if shape[1] != shape[2] else ()
                content += [grids] if any(grids) else []
            return shared | {"features": fingerprint(content)}
        grid = probe_grid(self.experiment)
        return shared | {
            "taps": fingerprint(self.teacher.taps),
            # Earlier stores used means over all positions; leaving out grid 1 keeps their keys
            # valid.
            **({"probes": f"grid {grid}x{grid_name(grid)}"} if grid > 1 else {}),
            "store": fingerprint(self.experiment.store.identity()),
        }

    @property
    def path(self) -> Path:
        """Folder of the store."""
        return self.experiment.cache_path / "stores" / fingerprint(self.key)

    @property
    def num_rows(self) -> int:
        """Number of views of samples in the whole store."""
        return self.experiment.views.num_views * self.dataset.num_samples["train"]

    def spec(self, device: torch.device) -> StoreSpec:
        """Return the specification of the store, with the teacher on this device."""
        layout: FeatureLayout | WhereLayout | None = None
        if self.kind is not None:
            network = self.networks.teacher
            shapes = feature_shapes(self.kind, network.stage_shapes, network.image_shape)
            layout = FeatureLayout(shapes)
            if self.kind == "where":
                layout = WhereLayout(tuple((rows, columns) for rows, columns in shapes))
        return StoreSpec(
            self.path,
            self.key,
            self.dataset,
            self.experiment.views,
            self.experiment.store,
            self._opener(device),
            device,
            layout,
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

    def _opener(self, device: torch.device) -> Callable[[], tuple[TappedModel, nn.Module]]:
        def open_tapped() -> tuple[TappedModel, nn.Module]:
            teacher = open_teacher(self.experiment, self.dataset, self.teacher_path)
            if self.kind is None:
                return teacher.tapped.to(device), teacher.probes.to(device)
            network = self.networks.teacher
            tapped = TappedModel(teacher.tapped.model, network.stage_paths)
            return tapped.to(device), FeatureReader(self.kind, network.image_shape)

        return open_tapped
