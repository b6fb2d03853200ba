"""Networks like users' own: outputs, arguments and mistakes that krscale must handle."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import programs
import torch
from safetensors.torch import load_file
from torch import Tensor, nn


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class Net(nn.Module):
    """A small classifier; `form` selects what it returns, or what is wrong with it."""

    tap_paths = ("first",)
    stage_ends = (1, 2)

    def __init__(self, n_classes: int, in_chans: int = 1, width: int = 8, form: str = "") -> None:
        super().__init__()
        self.form = form
        self.first = nn.Sequential(
            nn.Conv2d(in_chans, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.head = nn.Conv2d(width, 3 if form == "three" else n_classes, 1)
        if form == "looks at values" and self.head.weight.sum().item() > 1e9:
            raise ValueError
        if form == "NaN":
            nn.init.constant_(self.head.bias, float("nan"))

    def forward(self, images: Tensor) -> object:
        maps = self.first(images.mul_(2.0) if self.form == "in place" else images)
        if self.form == "eval only" and self.training:
            raise ValueError
        if self.form == "overflow":
            maps = maps.exp().exp() * 1e30
        if self.form == "dropout":
            maps = nn.functional.dropout(maps, 0.2)
        if self.form == "batch":
            maps = maps - maps.mean(dim=0)
        if self.form.startswith("looks at") and bool(images.isnan().any()):
            raise ValueError
        logits = self.head(maps.mean(dim=(2, 3), keepdim=True))
        if self.form != "positions":
            logits = logits.flatten(1)
        return {
            "dict": lambda: {"logits": logits, "hidden": maps},
            "dataclass": lambda: Output(logits, maps),
            "pair": lambda: (maps, logits),
            "squeeze": lambda: logits.squeeze(),
            "probabilities": lambda: logits.softmax(dim=1),
            "shares": lambda: logits.sigmoid(),
            "logarithms": lambda: logits.log_softmax(dim=1),
            "auxiliary": lambda: (logits, logits * 0) if self.training else logits,
            "text": lambda: "logits",
            "maps": lambda: maps,
            "crash": lambda: logits + torch.zeros(7, 7),
        }.get(self.form, lambda: logits)()


class OneLayer(nn.Linear):
    """One layer from the pixels of digits to logits; it has no module that could be a tap."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flatten(1))


def compiled(num_labels: int, **options: str) -> nn.Module:
    return torch.compile(Net(num_labels, **options))


def scripted(n_classes: int) -> nn.Module:
    return programs.traced(Net(n_classes), torch.zeros(2, 1, 8, 8))


def exported(n_classes: int) -> nn.Module:
    return programs.exported(Net(n_classes), torch.zeros(2, 1, 8, 8))


def fixed(n_classes: int) -> nn.Module:
    return Net(n_classes)


def trained(n_classes: int, path: str) -> nn.Module:
    """A network that loads weights of its own."""
    model = Net(n_classes)
    model.load_state_dict(load_file(Path(path)))
    return model


class Deep(nn.Module):
    """Three blocks of one class, and no `tap_paths`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = (1, 4, 8, 8)
        pairs = pairwise(widths)
        self.blocks = nn.ModuleList(_Block(old, new) for old, new in pairs)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        for block in self.blocks:
            images = block(images)
        return self.head(images.mean(dim=(2, 3)))


class _Block(nn.Module):
    def __init__(self, old: int, new: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(old, new, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).relu()


def deep(num_classes: int) -> nn.Module:
    return Deep(num_classes)
