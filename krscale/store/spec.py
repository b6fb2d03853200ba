"""What a store is made of: its folder, its key, and everything that its content depends on."""

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
"""Loads onto the device the tapped teacher and a module that reads it: its probes
(`TapOutputs -> [B, D, K]`), or a reader of features (`TapOutputs -> [B, F]`)."""


@dataclass(frozen=True)
class StoreSpec:
    """One store of the teacher's knowledge.

    Attributes:
        path: Folder of the store.
        key: Fingerprints of everything that its content depends on.
        dataset: Data set whose training split is stored.
        views: The view policy; every view of every sample is stored.
        settings: Temperature, truncation, size of shards.
        open_teacher: Loads the teacher and its reader; called only if the teacher has to run.
        device: Device on which the teacher runs.
        layout: Layout of the stored features; None stores distributions, and chooses their layout.
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
        """Number of views of samples in the whole store."""
        return self.views.num_views * self.dataset.num_samples["train"]
