"""A small teacher, its data and its store; also imported by `slow_build.py`, which is a script."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from krscale.config import StoreConfig, ViewsConfig
from krscale.data import Dataset, Split
from krscale.data.arrow import write_split
from krscale.data.augmentation.views import apply_views
from krscale.knowledge.probes import Probes
from krscale.knowledge.taps import TappedModel
from krscale.store import KnowledgeStore, StoreSpec, prepare_store

IMAGE_SHAPE = (1, 6, 6)
MEAN, STD = (0.4,), (0.3,)


def make_dataset(path: Path, num_classes: int, num_samples: int) -> Dataset:
    path.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (num_samples, *IMAGE_SHAPE), dtype=np.uint8)
    labels = generator.integers(0, num_classes, num_samples)
    if not (path / "train.arrow").exists():
        write_split(path / "train.arrow", Split(images, labels))
    return Dataset(
        path=path,
        fingerprint="data",
        source="random",
        classes=tuple(str(n) for n in range(num_classes)),
        image_shape=IMAGE_SHAPE,
        mean=MEAN,
        std=STD,
        num_samples={"train": num_samples},
        sha256={},
    )


def make_teacher(num_classes: int) -> tuple[TappedModel, Probes]:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(5, 8, 3, stride=2),
        nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.BatchNorm1d(8),
        nn.Linear(8, num_classes),
    )
    probes = Probes([5, 8], num_classes)
    with torch.no_grad():
        for module in (network, probes):
            for parameter in module.parameters():
                parameter.normal_(0, 0.7)
    # Left in training mode on purpose: the store must not run a teacher in that mode.
    return TappedModel(network, ("1", "2")), probes


@dataclass
class Small:
    """All that a store is built from; fields may be changed before `prepare`."""

    folder: Path
    num_classes: int = 5
    num_samples: int = 50
    views: ViewsConfig = field(default_factory=lambda: ViewsConfig(num_views=3, shift=1))
    config: StoreConfig = field(default_factory=lambda: StoreConfig(shard_rows=16, temperature=2.0))
    key: dict[str, str] = field(default_factory=lambda: {"teacher": "t1", "data": "d1"})
    num_opened: int = 0
    num_asked: int = 0
    reports: list[tuple[int, int]] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.folder / "store"

    @property
    def dataset(self) -> Dataset:
        return make_dataset(self.folder / "data", self.num_classes, self.num_samples)

    def open_teacher(self) -> tuple[TappedModel, Probes]:
        self.num_opened += 1
        tapped, probes = make_teacher(self.num_classes)

        def count(_module, arguments) -> None:
            self.num_asked += len(arguments[0])

        tapped.register_forward_pre_hook(count)
        return tapped, probes

    def spec(self, **changes) -> StoreSpec:
        spec = StoreSpec(
            self.path,
            self.key,
            self.dataset,
            self.views,
            self.config,
            self.open_teacher,
            torch.device("cpu"),
        )
        return replace(spec, **changes)

    def prepare(self, report=None, layout=None, **arguments) -> KnowledgeStore:
        report = report or (lambda *counts: self.reports.append(counts))
        prepare_store(self.spec(layout=layout), report, **arguments)
        return KnowledgeStore.open(self.path, self.key)

    def exact(self, view: int) -> torch.Tensor:
        """Return fp64 logits `[N, D, K]` of one view, in one batch, without the store's code."""
        network, probes = (module.eval().double() for module in make_teacher(self.num_classes))
        pixels = torch.from_numpy(self.dataset.split("train").images.copy())
        views = apply_views(pixels, torch.arange(self.num_samples), view, self.views)
        features = [(views.double() / 255 - MEAN[0]) / STD[0]]
        for block in network.model:
            features.append(block(features[-1]))
        first, second = (
            linear(features[number].mean((2, 3)))
            for linear, number in zip(probes.linears, (2, 3), strict=True)
        )
        return torch.stack([first, second, features[-1]], 1).detach()

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Return the time of writing and the content of every shard."""
        return {
            file.name + str(file.parent.name): (file.stat().st_mtime_ns, file.read_bytes())
            for file in sorted(self.path.glob("view-*/*"))
        }


@pytest.fixture
def small(tmp_path) -> Small:
    return Small(tmp_path)
