"""Preprocessing against its formula in float64, and against the normalisation used before it."""

import numpy as np
import pytest
import torch
from torch import nn

from krscale.errors import UserError
from krscale.models.preprocessing import (
    DEFAULT,
    Preprocessing,
    input_shape,
    preprocessing_of_network,
    set_preprocessing,
)

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
"""Mean and std of the data, in RGB order."""


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (4, 3, 6, 8), dtype=np.uint8))


def exact(pixels: torch.Tensor, mean, std, divisor: float) -> torch.Tensor:
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std))
    return (pixels.double() / divisor - mean) / std


def test_the_default_is_the_former_normalisation_bit_by_bit(pixels: torch.Tensor) -> None:
    scale = torch.tensor([1 / (255 * s) for s in STD])[:, None, None]
    offset = torch.tensor([m / s for m, s in zip(MEAN, STD, strict=True)])[:, None, None]
    expected = pixels.to(torch.float32) * scale - offset
    assert DEFAULT.apply(pixels, MEAN, STD).equal(expected)
    assert DEFAULT.resolved(MEAN, STD).apply(pixels, MEAN, STD).equal(expected)
    assert DEFAULT.resolved(MEAN, STD) == Preprocessing(MEAN, STD)


@pytest.mark.parametrize(
    ("fields", "mean", "std", "divisor", "order"),
    [
        ({"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}, (0.1, 0.2, 0.3), (1, 2, 3), 255, "rgb"),
        ({"mean": (0.5,), "std": (0.5,)}, (0.5,) * 3, (0.5,) * 3, 255, "rgb"),
        (
            {
                "mean": (104.0, 117.0, 124.0),
                "std": (1.0,),
                "pixel_range": "0..255",
                "channel_order": "bgr",
            },
            (104, 117, 124),
            (1, 1, 1),
            1,
            "bgr",
        ),
        ({"channel_order": "bgr"}, MEAN[::-1], STD[::-1], 255, "bgr"),
        ({"pixel_range": "0..255"}, MEAN, STD, 255, "rgb"),
    ],
)
def test_numbers_are_of_the_networks_channels_and_range(
    pixels: torch.Tensor, fields, mean, std, divisor: float, order: str
) -> None:
    found = Preprocessing(**fields).apply(pixels.clone(), MEAN, STD)
    ordered = pixels.flip(1) if order == "bgr" else pixels
    torch.testing.assert_close(
        found.double(), exact(ordered, mean, std, divisor), atol=1e-4, rtol=1e-5
    )


def test_views_are_scaled_for_each_network_and_left_as_they_are(pixels: torch.Tensor) -> None:
    before = pixels.clone()
    sizes = [None, (6, 8), (12, 16), (3, 4), (6, 6)]
    for size in sizes:
        preprocessing = Preprocessing(input_size=size, interpolation="bicubic")
        shape = preprocessing.input_shape(tuple(pixels.shape[1:]))
        assert preprocessing.apply(pixels, MEAN, STD).shape[1:] == shape
    assert pixels.equal(before)
    same = Preprocessing(input_size=(6, 8)).apply(pixels, MEAN, STD)
    assert same.equal(DEFAULT.apply(pixels, MEAN, STD)), "the data's own size scales nothing"


def test_a_constant_image_stays_constant() -> None:
    grey = torch.full((1, 3, 5, 9), 77, dtype=torch.uint8)
    found = Preprocessing((0.5,), (0.5,), input_size=(11, 7), interpolation="lanczos")
    torch.testing.assert_close(
        found.apply(grey, MEAN, STD), torch.full((1, 3, 11, 7), (77 / 255 - 0.5) / 0.5)
    )


def test_it_belongs_to_the_network() -> None:
    network = nn.Linear(2, 2)
    assert preprocessing_of_network(network) is DEFAULT
    assert input_shape(network, (3, 32, 64)) == (3, 32, 64)
    set_preprocessing(network, Preprocessing(input_size=(224, 224)))
    assert input_shape(network, (3, 32, 64)) == (3, 224, 224)
    assert list(network.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mean": (0.5,)}, "mean and std go together"),
        ({"mean": (0.5,), "std": (0.0,)}, "std positive"),
        ({"mean": (float("nan"),), "std": (1.0,)}, "finite"),
        ({"channel_order": "bgrr"}, "Did you mean 'bgr'"),
        ({"pixel_range": "0-255"}, r"Did you mean '0\.\.255'"),
        ({"interpolation": "cubic"}, "Did you mean 'bicubic'"),
    ],
)
def test_what_cannot_be_is_refused(fields, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Preprocessing(**fields)


def test_numbers_for_other_channels_are_refused() -> None:
    with pytest.raises(UserError, match=r"teacher\.mean: 3 numbers .* the images have 1 channel"):
        Preprocessing(MEAN, STD).check_channels(1, "teacher")
    with pytest.raises(UserError, match="'bgr' needs images of 3 channels"):
        Preprocessing(channel_order="bgr").check_channels(1, "teacher")
    Preprocessing((0.5,), (0.5,)).check_channels(1, "teacher")
