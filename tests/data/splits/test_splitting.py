"""The statistics of the channels, by which every image is normalised."""

from __future__ import annotations

import numpy as np
import pytest

from krscale.data import Split
from krscale.data.splits.splitting import channel_statistics


@pytest.mark.parametrize(
    "shape",
    [
        (7, 3, 5, 6),
        (3, 2, 1024, 1024),  # so large that they are counted in several parts
    ],
)
def test_each_channel_has_the_mean_and_deviation_of_all_its_pixels(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 200, shape, np.uint8)
    images[:, 0] //= 4
    images[-1] += 55  # the last image is unlike the others
    mean, std = channel_statistics(Split(images, np.zeros(len(images), np.int64)))
    for channel, (of_channel, deviation) in enumerate(zip(mean, std, strict=True)):
        pixels = images[:, channel] / 255
        assert of_channel == pytest.approx(pixels.mean(), rel=1e-9)
        assert deviation == pytest.approx(pixels.std(), rel=1e-9)


def test_a_constant_channel_has_the_deviation_of_one_level() -> None:
    images = np.stack(
        [np.full((4, 2, 2), 51, np.uint8), np.eye(4, dtype=np.uint8).reshape(4, 2, 2)]
    )
    mean, std = channel_statistics(Split(images.transpose(1, 0, 2, 3), np.zeros(4, np.int64)))
    assert mean == pytest.approx((0.2, 0.25 / 255))
    assert std == pytest.approx((1 / 255, 1 / 255)), "and so has one that varies by less"
