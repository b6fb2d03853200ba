"""Preprocessing: how the pixels of a view become the input of a network.

It belongs to a network: a teacher and its students may differ in it, and see the same view of the
same image nevertheless. The view is made once, at the size of the data; then each network's own
scaling, order of channels and normalisation is applied to the batch, on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from krscale.errors import UserError, unknown_name
from krscale.models.resizing import INTERPOLATIONS, Size, resize

Numbers = tuple[float, ...]
PRESETS: dict[str, tuple[Numbers, Numbers]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,), (0.5,)),
    "none": ((0.0,), (1.0,)),
}
"""Mean and standard deviation by name, red first, of pixels in 0..1. `none` leaves pixels as they
are, in whatever range the network takes."""
PIXEL_RANGES = {"0..1": 255.0, "0..255": 1.0}
"""Ranges that networks take pixels in, and what 0..255 is divided by to come there."""
CHANNEL_ORDERS = ("rgb", "bgr")
_ATTRIBUTE = "krscale_preprocessing"


@dataclass(frozen=True)
class Preprocessing:
    """From the pixels of a view to the input of a network.

    The default is the normalisation by the data's own mean and standard deviation.

    Attributes:
        mean: Of each channel in the order that the network takes them, or one for all, in units of
            `pixel_range`; None takes the data's own.
        std: Standard deviation, likewise; None together with `mean`.
        pixel_range: A name of `PIXEL_RANGES`.
        channel_order: `"rgb"` or `"bgr"`.
        input_size: Height and width that the view is scaled and cut to; None leaves it as it is.
        interpolation: How it is scaled (`krscale.models.resizing.INTERPOLATIONS`).
    """

    mean: Numbers | None = None
    std: Numbers | None = None
    pixel_range: str = "0..1"
    channel_order: str = "rgb"
    input_size: Size | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("pixel_range", tuple(PIXEL_RANGES)),
            ("channel_order", CHANNEL_ORDERS),
            ("interpolation", INTERPOLATIONS),
        ):
            if getattr(self, name) not in allowed:
                raise unknown_name(name, getattr(self, name), allowed, "preprocessing")
        if (self.mean is None) != (self.std is None):
            raise UserError("preprocessing: mean and std go together; one of them is missing.")
        numbers = (*(self.mean or ()), *(self.std or ()))
        if not all(map(math.isfinite, numbers)) or min(self.std or (1.0,)) <= 0.0:
            raise UserError(
                f"preprocessing: mean {self.mean} and std {self.std}: both must be finite, and std "
                "positive."
            )

    def check_channels(self, num_channels: int, where: str) -> None:
        """Refuse numbers of another count of channels than the images have.

        Args:
            num_channels: Of the images.
            where: Whose preprocessing it is, for the message.

        Raises:
            UserError: Naming both counts, or the order that images of one channel do not have.
        """
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if numbers is not None and len(numbers) not in (1, num_channels):
                raise UserError(
                    f"{where}.{name}: {len(numbers)} numbers ({_numbers(numbers)}), the images "
                    f"have {num_channels} channel(s). Give one number for all, or as many as there "
                    f"are channels; {where}.normalisation=data takes the data's own."
                )
        if self.channel_order == "bgr" and num_channels != 3:
            raise UserError(
                f"{where}.channel_order: 'bgr' needs images of 3 channels, these have "
                f"{num_channels}."
            )

    def resolved(self, mean: Sequence[float], std: Sequence[float]) -> Preprocessing:
        """Return the same with all numbers written out.

        Args:
            mean: Of each channel of the data, red first, pixels in 0..1.
            std: Likewise.
        """
        unit = 255.0 / PIXEL_RANGES[self.pixel_range]
        step = -1 if self.channel_order == "bgr" else 1

        def numbers(given: Numbers | None, of_data: Sequence[float]) -> Numbers:
            if given is None:
                return tuple(value * unit for value in of_data[::step])
            return given * len(of_data) if len(given) == 1 else given

        return replace(self, mean=numbers(self.mean, mean), std=numbers(self.std, std))

    def input_shape(self, image_shape: Sequence[int]) -> tuple[int, int, int]:
        """Return `(C, H, W)` of what the network gets for images of a shape."""
        channels, height, width = image_shape
        return (channels, *(self.input_size or (height, width)))

    def apply(self, pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Return the network's input, `[B, C, *input_size]` fp32.

        Args:
            pixels: `[B, C, H, W]` uint8, views at the size of the data.
            mean: Of each channel of the data, pixels in 0..1.
            std: Likewise.
        """
        if self == DEFAULT:
            return normalise(pixels, mean, std)
        whole = self.resolved(mean, std)
        divisor = PIXEL_RANGES[self.pixel_range]
        return _affine(whole.arranged(pixels), whole.mean or (), whole.std or (), divisor)

    def arranged(self, pixels: Tensor) -> Tensor:
        """Return pixels in the network's order of channels and size, fp32, in the range they have.

        Args:
            pixels: `[B, C, H, W]`, uint8 or floating point.
        """
        images = pixels.to(torch.float32)
        if self.channel_order == "bgr":
            images = images.flip(1)
        if self.input_size in (None, tuple(images.shape[-2:])):
            return images
        assert self.input_size is not None  # noqa: S101 - compared above
        return resize(images, self.input_size, self.interpolation)

    def describe(self) -> str:
        """Return it in words, for one line."""
        size = "the data's size"
        if self.input_size is not None:
            size = "x".join(str(side) for side in self.input_size) + f" ({self.interpolation})"
        how = "the data's mean and std"
        if self.mean is not None and self.std is not None:
            how = f"mean {_numbers(self.mean)}, std {_numbers(self.std)}"
        return f"{size}, {self.channel_order.upper()} in {self.pixel_range}, {how}"


DEFAULT = Preprocessing()


def preset(name: str, pixel_range: str, channel_order: str) -> tuple[Numbers, Numbers]:
    """Return mean and standard deviation by a name of `PRESETS`, as the network takes its pixels.

    >>> preset("half", "0..255", "rgb")
    ((127.5,), (127.5,))
    """
    mean, std = PRESETS[name]
    unit = 255.0 if pixel_range == "0..255" and name != "none" else 1.0
    step = -1 if channel_order == "bgr" else 1
    return tuple(m * unit for m in mean[::step]), tuple(s * unit for s in std[::step])


def preprocessing_of_network(network: nn.Module) -> Preprocessing:
    """Return the preprocessing of a network that `set_preprocessing` gave it, or the default."""
    found = getattr(network, _ATTRIBUTE, DEFAULT)
    return found if isinstance(found, Preprocessing) else DEFAULT


def set_preprocessing(network: nn.Module, preprocessing: Preprocessing) -> None:
    """Keep on a network how its images are prepared, for whoever feeds it."""
    setattr(network, _ATTRIBUTE, preprocessing)


def input_shape(network: nn.Module, image_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return `(C, H, W)` of what a network gets for images of a shape."""
    return preprocessing_of_network(network).input_shape(image_shape)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return `(images / 255 - mean) / std` in fp32.

    Args:
        images: `[B, C, H, W]` uint8.
        mean: Of each channel, pixels in 0..1.
        std: Of each channel, likewise.
    """
    return _affine(images.to(torch.float32), mean, std, PIXEL_RANGES["0..1"])


def _affine(images: Tensor, mean: Sequence[float], std: Sequence[float], divisor: float) -> Tensor:
    """Return `(images / divisor - mean) / std`; `images` are changed in place."""
    scale, offset = _scale_and_offset(tuple(mean), tuple(std), divisor, images.device)
    return images.mul_(scale).sub_(offset)


@lru_cache(maxsize=64)
def _scale_and_offset(
    mean: Numbers, std: Numbers, divisor: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return `1 / (divisor std)` and `mean / std`, `[C, 1, 1]` each."""
    scale = [1 / (divisor * s) for s in std]
    offset = [m / s for m, s in zip(mean, std, strict=True)]
    return (
        torch.tensor(scale, device=device)[:, None, None],
        torch.tensor(offset, device=device)[:, None, None],
    )


def _numbers(values: Numbers) -> str:
    return ", ".join(f"{value:g}" for value in values)
