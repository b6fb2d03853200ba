"""Preprocessing: convert the pixels of a view to the input of a network.

It belongs to a network: a teacher and its students may use different preprocessing, but still get
the same view of the same image. The view is made once, at the size of the data. Then each network's
own scaling, channel order and normalisation are applied to the batch, on the device.
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
"""Mean and standard deviation by name, red first, for pixels in 0..1. `none` leaves pixels
unchanged, whatever range the network takes."""
PIXEL_RANGES = {"0..1": 255.0, "0..255": 1.0}
"""Ranges of pixels that networks take, with the divisor that maps 0..255 to each."""
CHANNEL_ORDERS = ("rgb", "bgr")
_ATTRIBUTE = "krscale_preprocessing"


@dataclass(frozen=True)
class Preprocessing:
    """Converts the pixels of a view to the input of a network.

    The default is normalisation by the data's own mean and standard deviation.

    Attributes:
        mean: Mean of each channel in the network's order, or one for all, in units of
            `pixel_range`; None takes the data's own.
        std: Standard deviation, likewise; None together with `mean`.
        pixel_range: A name of `PIXEL_RANGES`.
        channel_order: `"rgb"` or `"bgr"`.
        input_size: Height and width that the view is scaled and cropped to; None keeps its size.
        interpolation: Filter for scaling (`krscale.models.resizing.INTERPOLATIONS`).
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
        """Refuse numbers for more or fewer channels than the images have.

        Args:
            num_channels: Number of channels of the images.
            where: Name of the preprocessing, for error messages.

        Raises:
            UserError: If the counts differ (the message gives both), or if the order is BGR for
                images that do not have 3 channels.
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

    def expressed(self, pixel_range: str, channel_order: str) -> Preprocessing:
        """Return the same normalisation of every colour, for another pixel range and channel order.

        Args:
            pixel_range: A name of `PIXEL_RANGES`. A mean of 0 with a standard deviation of 1 leaves
                pixels unchanged and is kept, whatever the range.
            channel_order: `"rgb"` or `"bgr"`.

        Example:
            >>> Preprocessing((0.2, 0.4, 0.8), (0.5,)).expressed("0..1", "bgr").mean
            (0.8, 0.4, 0.2)
        """
        unit = PIXEL_RANGES[self.pixel_range] / PIXEL_RANGES[pixel_range]
        if set(self.mean or ()) == {0.0} and set(self.std or ()) == {1.0}:
            unit = 1.0
        step = 1 if channel_order == self.channel_order else -1
        mean, std = (
            None if numbers is None else tuple(value * unit for value in numbers[::step])
            for numbers in (self.mean, self.std)
        )
        return replace(
            self, mean=mean, std=std, pixel_range=pixel_range, channel_order=channel_order
        )

    def resolved(self, mean: Sequence[float], std: Sequence[float]) -> Preprocessing:
        """Return the same preprocessing with all numbers filled in.

        Args:
            mean: Mean of each channel of the data, red first, for pixels in 0..1.
            std: Standard deviation, likewise.
        """
        unit = 255.0 / PIXEL_RANGES[self.pixel_range]
        step = -1 if self.channel_order == "bgr" else 1

        def numbers(given: Numbers | None, of_data: Sequence[float]) -> Numbers:
            if given is None:
                return tuple(value * unit for value in of_data[::step])
            return given * len(of_data) if len(given) == 1 else given

        return replace(self, mean=numbers(self.mean, mean), std=numbers(self.std, std))

    def input_shape(self, image_shape: Sequence[int]) -> tuple[int, int, int]:
        """Return the shape `(C, H, W)` of the network's input for images of a shape."""
        channels, height, width = image_shape
        return (channels, *(self.input_size or (height, width)))

    def apply(self, pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Return the network's input, `[B, C, *input_size]` fp32.

        Args:
            pixels: `[B, C, H, W]` uint8, views at the size of the data.
            mean: Mean of each channel of the data, for pixels in 0..1.
            std: Standard deviation, likewise.
        """
        if self == DEFAULT:
            return normalise(pixels, mean, std)
        whole = self.resolved(mean, std)
        divisor = PIXEL_RANGES[self.pixel_range]
        return _affine(whole.arranged(pixels), whole.mean or (), whole.std or (), divisor)

    def arranged(self, pixels: Tensor) -> Tensor:
        """Return pixels in the network's channel order and size, fp32, in their original range.

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
        """Return a one-line description."""
        size = "the data's size"
        if self.input_size is not None:
            size = "x".join(str(side) for side in self.input_size) + f" ({self.interpolation})"
        how = "the data's mean and std"
        if self.mean is not None and self.std is not None:
            how = f"mean {_numbers(self.mean)}, std {_numbers(self.std)}"
        return f"{size}, {self.channel_order.upper()} in {self.pixel_range}, {how}"


DEFAULT = Preprocessing()


def preset(name: str, pixel_range: str, channel_order: str) -> tuple[Numbers, Numbers]:
    """Return mean and std of a name in `PRESETS`, for the network's pixel range and order.

    >>> preset("half", "0..255", "rgb")
    ((127.5,), (127.5,))
    """
    found = Preprocessing(*PRESETS[name]).expressed(pixel_range, channel_order)
    return found.mean or (), found.std or ()


def preprocessing_of_network(network: nn.Module) -> Preprocessing:
    """Return the preprocessing that `set_preprocessing` stored on a network, or the default."""
    found = getattr(network, _ATTRIBUTE, DEFAULT)
    return found if isinstance(found, Preprocessing) else DEFAULT


def set_preprocessing(network: nn.Module, preprocessing: Preprocessing) -> None:
    """Store on a network how its images are to be preprocessed."""
    setattr(network, _ATTRIBUTE, preprocessing)


def input_shape(network: nn.Module, image_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the shape `(C, H, W)` of a network's input for images of a shape."""
    return preprocessing_of_network(network).input_shape(image_shape)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return `(images / 255 - mean) / std` in fp32.

    Args:
        images: `[B, C, H, W]` uint8.
        mean: Mean of each channel, for pixels in 0..1.
        std: Standard deviation of each channel, likewise.
    """
    return _affine(images.to(torch.float32), mean, std, PIXEL_RANGES["0..1"])


def _affine(images: Tensor, mean: Sequence[float], std: Sequence[float], divisor: float) -> Tensor:
    """Return `(images / divisor - mean) / std`; change `images` in place."""
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
