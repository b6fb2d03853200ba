"""What a store is made of: its folder, its key, and all that its content depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from krscale.config import StoreConfig, ViewsConfig
from krscale.data import Dataset
from krscale.knowledge.taps import TappedModel
from krscale.store.layout import FeatureLayout, WhereLayout

OpenTeacher = Callable[[], tuple[TappedModel, nn.Module]]
"""Loads the tapped teacher and what reads it on the device: its probes (`TapOutputs -> [B, D, K]`),
or a reader of features (`TapOutputs -> [B, F]`)."""


@dataclass(frozen=True)
class StoreSpec:
    """One store of the teacher's knowledge.

    Attributes:
        path: Its folder.
        key: Fingerprints of all that its content depends on.
        dataset: Whose training split is stored.
        views: The view policy; every view of every sample is stored.
        settings: Temperature, truncation, size of shards.
        open_teacher: Loads the teacher and what reads it; called only when it has to run.
        device: Where the teacher runs.
        layout: Of the features that are stored; None stores distributions, and chooses how.
    """

    path: Path
    key: Mapping[str, str]
    dataset: Dataset
    views: ViewsConfig
    settings: StoreConfig
    open_teacher: OpenTeacher
    device: torch.device
    layout: FeatureLayout | WhereLayout | None = None

    @property
    def num_rows(self) -> int:
        """Views of samples in the whole store."""
        return self.views.num_views * self.dataset.num_samples["train"]
