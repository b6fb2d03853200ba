"""Views: seeded augmentation, computed in batches on the device, the same on every machine.

A view of an image is a pure function of (seed, sample, view number). All pixel arithmetic is on
integers, so the teacher need run only once for each view, on any machine, and students get exactly
the same pixels. The operations, in this order: flip, crop, resized crop, shift, jitter, cutout,
erasing. Two images are mixed after all of these (`krscale.data.augmentation.mixing`).

Pixels move by copying whole blocks of memory: in a flat batch, a shift of an image by (rows,
columns) is a shift of its bytes by `rows * W + columns`. Pixels that this brings in from
neighbouring rows and images lie outside the image and are blanked.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from krscale.config import ViewsConfig
from krscale.data.augmentation.draws import draw_integers
from krscale.data.augmentation.rectangles import NUM_SIZES, PLACES, erase, resized_crop
from krscale.errors import UserError
from krscale.models.preprocessing import normalise

__all__ = [
    "apply_views",
    "check_views",
    "gather_views",
    "normalise",
    "notes_on_views",
    "view_of_epoch",
]

_CHARACTERS = ("digits", "glyphs")
_ONE = 256  # jitter factors are multiples of 1 / _ONE
_COEFFICIENT_BITS = 10
_GREY = (77, 150, 29)  # ITU-R BT.601 luma, in 1 / _ONE


def check_views(policy: ViewsConfig, image_shape: tuple[int, int, int]) -> None:
    """Refuse a policy that does not suit the images.

    Args:
        policy: The `views` section.
        image_shape: `(C, H, W)`.

    Raises:
        UserError: If a displacement or the cutout covers a whole side, if jitter is set for images
            that are not RGB, or CutMix for images of one row or column.

    Example:
        >>> check_views(ViewsConfig(jitter=0.2), (1, 28, 28))
        Traceback (most recent call last):
        krscale.errors.UserError: views.jitter: needs RGB images, these have 1 channel(s); ...
    """
    channels, height, width = image_shape
    side = min(height, width)
    for name in ("crop_padding", "shift", "cutout"):
        pixels = getattr(policy, name)
        if pixels >= side:
            raise UserError(
                f"views.{name}: {pixels} pixels are too many for images of {height}x{width}; "
                f"allowed: 0..{side - 1}."
            )
    if policy.jitter > 0 and channels != 3:
        raise UserError(
            f"views.jitter: needs RGB images, these have {channels} channel(s); set it to 0."
        )
    if policy.cutmix > 0 and side < 2:
        raise UserError(
            f"views.cutmix: images of {height}x{width} have no room for a part of another; set it "
            "to 0."
        )


def notes_on_views(policy: ViewsConfig, source: str) -> tuple[str, ...]:
    """Return notes on settings that are known not to suit the task of a source (`data.source`)."""
    if policy.flip and source in _CHARACTERS:
        return (
            f"views.flip mirrors half of the views, and a mirrored character of {source} is "
            "another one or none; false is right for characters",
        )
    return ()


def view_of_epoch(epoch: int, policy: ViewsConfig) -> int:
    """Return the number of the view that an epoch (counted from 0) trains on.

    Example:
        >>> [view_of_epoch(epoch, ViewsConfig(num_views=3)) for epoch in range(5)]
        [0, 1, 2, 0, 1]
    """
    return epoch % policy.num_views


def apply_views(images: Tensor, samples: Tensor, view: int, policy: ViewsConfig) -> Tensor:
    """Return one view of each image, not mixed with another.

    Args:
        images: `[B, C, H, W]` uint8; not modified.
        samples: `[B]` int64, index of each image within its split, the key of its random draws.
        view: Number of the view.
        policy: The `views` section.

    Returns:
        `[B, C, H, W]` uint8.

    Example:
        >>> images = torch.arange(192).to(torch.uint8).view(3, 1, 8, 8)
        >>> policy = ViewsConfig(shift=2, flip=True)
        >>> views = apply_views(images, torch.arange(3), 0, policy)
        >>> alone = apply_views(images[2:], torch.tensor([2]), 0, policy)
        >>> torch.equal(views[2:], alone)  # whatever is beside it
        True
    """
    rows = torch.arange(len(images), device=images.device)
    return _views(images, rows, samples, view, policy)


def gather_views(data: Tensor, samples: Tensor, view: int, policy: ViewsConfig) -> Tensor:
    """Return one view of each chosen image; `apply_views(data[samples], ...)`, but faster.

    Args:
        data: `[N, C, H, W]` uint8, all images of a split, on the device of `samples`.
        samples: `[B]` int64, indices into `data`.
        view: Number of the view.
        policy: The `views` section.

    Returns:
        `[B, C, H, W]` uint8.

    Example:
        >>> data, samples = torch.arange(192).to(torch.uint8).view(3, 1, 8, 8), torch.tensor([2, 0])
        >>> policy = ViewsConfig(flip=True, crop_padding=2)
        >>> views = apply_views(data[samples], samples, 5, policy)
        >>> torch.equal(gather_views(data, samples, 5, policy), views)
        True
    """
    return _views(data, samples, samples, view, policy)


def _views(data: Tensor, rows: Tensor, samples: Tensor, view: int, policy: ViewsConfig) -> Tensor:
    """Return views of `data[rows]`, drawn for `samples`."""
    bounds = _bounds(policy, *data.shape[-3:])
    if not bounds or not len(rows):
        return data.index_select(0, rows)
    draws = draw_integers(samples, policy.seed, view, bounds)
    images = _flip_and_crop(data, rows, draws, policy.crop_padding)
    if "resized_size" in draws:
        images = resized_crop(images, draws, policy.resized_crop)
    if "shift_row" in draws:
        images = _shift(images, draws["shift_row"], draws["shift_column"], policy.shift)
    if "brightness" in draws:
        images = _jitter(images, draws, bounds["brightness"] // 2)
    if "cutout_row" in draws:
        images = _cut_out(images, draws["cutout_row"], draws["cutout_column"], policy.cutout)
    if "erase" in draws:
        images = erase(images, draws, policy.erasing)
    return images


def _bounds(policy: ViewsConfig, channels: int, height: int, width: int) -> dict[str, int]:
    """Return the number of outcomes of every draw that the policy needs."""
    bounds: dict[str, int] = {}
    if policy.flip:
        bounds["flip"] = 2
    for name, reach in (("crop", policy.crop_padding), ("shift", policy.shift)):
        if reach:
            bounds |= {f"{name}_row": 2 * reach + 1, f"{name}_column": 2 * reach + 1}
    if policy.jitter > 0:
        outcomes = 2 * round(policy.jitter * _ONE) + 1
        bounds |= {"brightness": outcomes, "contrast": outcomes, "saturation": outcomes}
    if policy.cutout:
        bounds |= {"cutout_row": height, "cutout_column": width}
    if policy.resized_crop > 0:
        bounds |= {"resized_size": NUM_SIZES, "resized_row": PLACES, "resized_column": PLACES}
    if policy.erasing > 0:
        bounds |= {"erase": PLACES, "erase_size": NUM_SIZES}
        bounds |= {"erase_row": PLACES, "erase_column": PLACES}
        bounds |= {f"erase_colour_{channel}": 256 for channel in range(channels)}
    return bounds


def _flip_and_crop(data: Tensor, rows: Tensor, draws: dict[str, Tensor], padding: int) -> Tensor:
    """Gather `data[rows]`, mirror those that drew it, and crop each from its zero-padded image."""
    flip, crop_row = draws.get("flip"), draws.get("crop_row")
    if flip is None and crop_row is None:
        return data.index_select(0, rows)
    num_images, (channels, height, width) = len(rows), data.shape[1:]
    size = channels * height * width
    guard = padding * (width + 1)  # how far a displaced image can reach past the batch
    num_copies = 1 if flip is None else 2
    buffer = data.new_empty(guard + num_copies * num_images * size + guard)
    copies = buffer[guard : len(buffer) - guard].view(-1, channels, height, width)
    torch.index_select(data, 0, rows, out=copies[:num_images])
    starts = torch.arange(guard, guard + num_images * size, size, device=data.device)
    if flip is not None:
        copies[num_images:] = copies[:num_images].flip(-1)
        starts += flip * (num_images * size)
    if crop_row is not None:
        starts += (crop_row - padding) * width + (draws["crop_column"] - padding)
    blocks = buffer.unfold(0, size, 1)  # a view: block i is the `size` bytes from byte i on
    images = blocks.index_select(0, starts).view(num_images, channels, height, width)
    if crop_row is not None:
        by_row, by_column = _inside(height, width, padding, data.device)
        images &= by_row.index_select(0, crop_row) & by_column.index_select(0, draws["crop_column"])
    return images


def _shift(images: Tensor, row_draw: Tensor, column_draw: Tensor, reach: int) -> Tensor:
    """Displace each image by up to `reach` pixels, repeating its border."""
    num_images, channels, height, width = images.shape
    rows = _displaced(height, row_draw - reach) * width
    columns = _displaced(width, column_draw - reach)
    index = (rows[:, :, None] + columns[:, None, :]).view(num_images, 1, height * width)
    flat = images.view(num_images, channels, height * width)
    return flat.gather(2, index.expand_as(flat)).view_as(images)


def _displaced(size: int, displacement: Tensor) -> Tensor:
    """Return the coordinates `[B, size]` that each output coordinate reads."""
    read = _coordinates(size, displacement.device) + displacement[:, None]
    return read.clamp_(0, size - 1)


def _jitter(images: Tensor, draws: dict[str, Tensor], reach: int) -> Tensor:
    """Change brightness, contrast and saturation by factors within `1 +- reach / 256`.

    With the grey level g of a pixel and the mean grey level m of its image,
    `brightness * (contrast * (saturation * x + (1 - saturation) * g) + (1 - contrast) * m)`,
    evaluated in one step: coefficients in 1/1024, the sum rounded to the nearest, clamped once.
    """
    brightness, contrast, saturation = (
        draws[name] + (_ONE - reach) for name in ("brightness", "contrast", "saturation")
    )
    of_pixel, of_grey, of_mean = (
        (product // (_ONE**3 >> _COEFFICIENT_BITS)).to(torch.int32).view(-1, 1, 1, 1)
        for product in (
            brightness * contrast * saturation,
            brightness * contrast * (_ONE - saturation),
            brightness * (_ONE - contrast) * _ONE,
        )
    )
    pixels = images.to(torch.int32)
    red, green, blue = (pixels[:, channel, None] for channel in range(3))
    grey = (red * _GREY[0] + green * _GREY[1] + blue * _GREY[2] + _ONE // 2) // _ONE
    num_pixels = images.shape[2] * images.shape[3]
    mean = grey.sum(dim=(2, 3), keepdim=True, dtype=torch.int32) // num_pixels
    half = 1 << (_COEFFICIENT_BITS - 1)
    changed = pixels.mul_(of_pixel).add_(grey.mul_(of_grey).add_(mean * of_mean + half))
    changed.clamp_(0, (256 << _COEFFICIENT_BITS) - 1)
    return changed.bitwise_right_shift_(_COEFFICIENT_BITS).to(torch.uint8)


def _cut_out(images: Tensor, row: Tensor, column: Tensor, side: int) -> Tensor:
    """Blank a square around each drawn centre, as far as it lies in the image, in place."""
    height, width = images.shape[-2:]
    by_row, by_column = _outside(height, width, side, images.device)
    images &= by_row.index_select(0, row) | by_column.index_select(0, column)
    return images


@lru_cache(maxsize=32)
def _inside(height: int, width: int, padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return masks `[2 padding + 1, 1, H, W]` by row and by column draw: 255 inside, 0 outside.

    The masks are whole images instead of rows, so that a look-up copies contiguous memory.
    """
    return (
        _expand(_reads_inside(height, padding, device)[:, :, None], height, width),
        _expand(_reads_inside(width, padding, device)[:, None, :], height, width),
    )


def _reads_inside(size: int, padding: int, device: torch.device) -> Tensor:
    read = _coordinates(size, device) + _coordinates(2 * padding + 1, device)[:, None] - padding
    return (read >= 0) & (read < size)


@lru_cache(maxsize=32)
def _outside(height: int, width: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return masks `[H, 1, H, W]`, `[W, 1, H, W]` by square centre: 0 in its rows or columns."""
    return (
        _expand(_beyond(height, side, device)[:, :, None], height, width),
        _expand(_beyond(width, side, device)[:, None, :], height, width),
    )


def _beyond(size: int, side: int, device: torch.device) -> Tensor:
    place = _coordinates(size, device)
    first = place[:, None] - side // 2
    return (place < first) | (place >= first + side)


def _expand(keep: Tensor, height: int, width: int) -> Tensor:
    return keep.to(torch.uint8).mul(255).expand(-1, height, width).contiguous()[:, None]


def _coordinates(size: int, device: torch.device) -> Tensor:
    return torch.arange(size, device=device)
