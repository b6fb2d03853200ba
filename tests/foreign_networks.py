"""Small networks built like those of known libraries; none names its taps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NUM_CLASSES = 3


class Residual(nn.Module):
    """A block with a skip: its `body` alone does not have the whole output."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1), nn.ReLU(inplace=True), nn.Conv2d(out, out, 1)
        )
        self.skip = nn.Conv2d(channels, out, 1, stride) if out != channels else nn.Identity()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.body(x) + self.skip(x))
        return y


class LikeResNet(nn.Module):
    """Stem, layers of blocks, pooling, fc."""

    def __init__(self, width: int = 4, num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.layer1 = nn.Sequential(Residual(width, width), Residual(width, width))
        self.layer2 = nn.Sequential(Residual(width, 2 * width, 2), Residual(2 * width, 2 * width))
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Any:
        x = self.layer2(self.layer1(self.conv1(x)))
        return self.fc(x.mean(dim=(2, 3)))


class Flat(nn.Sequential):
    """One linear layer: nothing in it can be a tap."""

    def __init__(self, num_classes: int = NUM_CLASSES, num_inputs: int = 144) -> None:
        super().__init__(nn.Flatten(), nn.Linear(num_inputs, num_classes))


class WithDict(LikeResNet):
    """Returns a dict, as users' code often does."""

    def forward(self, x: Tensor) -> Any:
        return {"logits": super().forward(x), "features": x}


@dataclass
class Output:
    logits: Tensor
    hidden_states: Tensor | None = None


class WithObject(LikeResNet):
    """Returns an object with logits, as the transformers library does."""

    def forward(self, x: Tensor) -> Any:
        return Output(super().forward(x), x)


class TransformerBlock(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.attn = nn.MultiheadAttention(size, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        z: Tensor = x + self.mlp(self.norm2(x))
        return z


class LikeViT(nn.Module):
    """Patches, a class token, a trunk of one shape."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, 8, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.blocks = nn.Sequential(*(TransformerBlock(8) for _ in range(depth)))
        self.head = nn.Linear(8, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        logits: Tensor = self.head(self.blocks(x)[:, 0])
        return logits


class LastBlock(nn.Module):
    """A block on `[B, H, W, C]`."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(channels), nn.Linear(channels, out)
        self.skip = nn.Linear(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.skip(x) + self.linear(self.norm(x)).relu()
        return y


class ChannelsLast(nn.Module):
    """Channels-last maps, like Swin's; the first has as many channels as rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 2, 2)
        self.layers = nn.Sequential(LastBlock(6, 6), LastBlock(6, 8), LastBlock(8, 8))
        self.head = nn.Linear(8, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).movedim(1, -1)
        logits: Tensor = self.head(self.layers(x).mean(dim=(1, 2)))
        return logits


class LikeVGG(nn.Module):
    """A plain chain of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(8 * 9, 16), nn.ReLU(), nn.Linear(16, NUM_CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class Stages(nn.Module):
    """A user's network: Sequentials without classes of their own, and an auxiliary head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
        self.second = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
        self.auxiliary = nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, NUM_CLASSES))
        self.fc = nn.Linear(8, NUM_CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        self.said = self.auxiliary(x)
        return (self.fc(self.second(x).mean(dim=(2, 3))),)


class Perceptron(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(),
            nn.Linear(8, NUM_CLASSES),
        )  # fmt: skip
