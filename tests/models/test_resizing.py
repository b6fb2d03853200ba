"""Resizing, compared with Pillow and with torch's own antialiased filters."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from krscale.models.resizing import resize

PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
SIZES = [(16, 16), (64, 64), (20, 13), (80, 50), (7, 9), (1, 1)]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 40, 26, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PILLOW)
def test_it_is_what_pillow_does(images: torch.Tensor, name: str, size: tuple[int, int]) -> None:
    if name == "nearest" and size in ((7, 9), (1, 1)):
        pytest.skip("pixels half way between two: either is nearest")
    found = resize(images, size, name)
    for image, scaled in zip(images, found, strict=True):
        for channel, own in zip(image, scaled, strict=True):
            fitted = ImageOps.fit(Image.fromarray(channel.numpy()), size[::-1], PILLOW[name])
            np.testing.assert_allclose(own, np.asarray(fitted), atol=1e-5)


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(20, 13), (80, 52), (40, 26)])
def test_it_is_what_torch_does_where_nothing_is_cut(
    images: torch.Tensor, name: str, size: tuple[int, int]
) -> None:
    expected = F.interpolate(images, size, mode=name, antialias=True, align_corners=False)
    torch.testing.assert_close(resize(images, size, name), expected, atol=1e-5, rtol=0)


def test_autocast_does_not_touch_pixels(images: torch.Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = resize(images, (16, 16), "bilinear")
    torch.testing.assert_close(found, resize(images, (16, 16), "bilinear"), atol=0, rtol=0)


def test_what_is_over_is_cut_evenly() -> None:
    image = torch.zeros(1, 1, 4, 8)
    image[..., 2:6] = 1.0
    assert resize(image, (4, 4), "bilinear").eq(1.0).all()
    assert resize(image, (8, 8), "nearest").eq(1.0).all()
