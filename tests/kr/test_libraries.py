"""KRLoss on real classifiers of torchvision, timm and transformers: taps found, gradients given."""

from __future__ import annotations

import pytest
import torch
from libraries import library
from torch import nn

from krscale import KRLoss

# krscale cannot fix deprecations in these libraries and torch.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def of_torchvision(name: str) -> nn.Module:
    network: nn.Module = getattr(library("torchvision").models, name)(num_classes=3)
    return network


def of_timm(name: str) -> nn.Module:
    network: nn.Module = library("timm").create_model(name, num_classes=3)
    return network


def of_transformers(name: str) -> nn.Module:
    transformers = library("transformers")
    if name == "vit":
        sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        config = transformers.ViTConfig(
            num_labels=3, num_hidden_layers=4, image_size=32, patch_size=8, **sizes
        )
        return transformers.ViTForImageClassification(config)  # type: ignore[no-any-return]
    config = transformers.ResNetConfig(
        num_labels=3, embedding_size=8, hidden_sizes=[8, 16, 24], depths=[1, 2, 1],
        layer_type="basic",
    )  # fmt: skip
    return transformers.ResNetForImageClassification(config)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ((of_torchvision, "resnet18"), (of_timm, "resnet18")),
        ((of_timm, "convnext_atto"), (of_torchvision, "shufflenet_v2_x0_5")),
        ((of_transformers, "resnet"), (of_transformers, "vit")),
        ((of_torchvision, "swin_t"), (of_transformers, "resnet")),
    ],
    ids=["torchvision-timm", "timm-torchvision", "hf-hf", "swin-hf"],
)
def test_a_step(teacher: tuple, student: tuple) -> None:  # type: ignore[type-arg]
    torch.manual_seed(0)
    large, small = (build(name) for build, name in (teacher, student))
    labels = torch.arange(24) % 3
    images = torch.randn(24, 3, 32, 32) + labels.view(-1, 1, 1, 1)
    kr = KRLoss.from_networks(
        large, small, [(images, labels)], granularity=3, allow_poor_teacher=True
    )
    assert len(kr.taps) >= 4
    kr(images, labels).backward()
    stem = next(p for p in small.parameters() if p.ndim == 4)  # the layer farthest from the loss
    assert stem.grad is not None
    assert stem.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in large.parameters())
