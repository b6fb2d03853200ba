import hashlib
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from krscale.config import ViewsConfig
from krscale.data.augmentation import draws, rectangles, views
from krscale.data.augmentation.draws import draw_integers
from krscale.data.augmentation.views import (
    apply_views,
    check_views,
    gather_views,
    normalise,
    view_of_epoch,
)
from krscale.errors import UserError
from krscale.models import preprocessing

OPERATIONS = {
    "none": {},
    "flip": {"flip": True},
    "crop": {"crop_padding": 3},
    "shift": {"shift": 2},
    "jitter": {"jitter": 0.4},
    "cutout": {"cutout": 5},
    "all": {"flip": True, "crop_padding": 2, "shift": 1, "jitter": 1.0, "cutout": 3},
    "resized": {"resized_crop": 0.3},
    "erasing": {"erasing": 0.7},
    "newer": {"flip": True, "resized_crop": 0.08, "shift": 1, "cutout": 2, "erasing": 1.0},
}
RANDOM = sorted(set(OPERATIONS) - {"none"})


def policy(name, **fields):
    return ViewsConfig(**{"shift": 0, **OPERATIONS[name], **fields})


@cache
def pictures(num_images=40, channels=3, height=8, width=10):
    """Return pixels from a linear congruential sequence, which is the same on every machine."""
    values, state = [], 1
    for _ in range(num_images * channels * height * width):
        state = (1103515245 * state + 12345) % 2**31
        values.append(state >> 23)
    return torch.tensor(values, dtype=torch.uint8).view(num_images, channels, height, width)


# An independent reference: one sample at a time, Python integers, index by index.


def reference_hash(value):
    value ^= value >> 15
    value = value * 0x2C1B3C6D % 2**32
    value ^= value >> 12
    value = value * 0x297A2D39 % 2**32
    return value ^ value >> 15


def reference_key(seed, view, name):
    digest = hashlib.sha256(f"{seed}/{view}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def reference_draw(sample, seed, view, name, bound):
    hashed = reference_hash(sample ^ reference_key(seed, view, ""))
    return reference_hash(hashed ^ reference_key(seed, view, name)) * bound // 2**32


def reference_view(image, sample, view, policy):
    def draw(name, bound):
        return reference_draw(sample, policy.seed, view, name, bound)

    _, height, width = image.shape
    if policy.flip and draw("flip", 2):
        image = image[:, :, ::-1]
    if policy.crop_padding:
        p = policy.crop_padding
        top, left = draw("crop_row", 2 * p + 1), draw("crop_column", 2 * p + 1)
        padded = np.pad(image, ((0, 0), (p, p), (p, p)))
        image = padded[:, top : top + height, left : left + width]
    if policy.resized_crop:
        image = reference_resized_crop(image, policy.resized_crop, draw)
    if policy.shift:
        s = policy.shift
        top, left = draw("shift_row", 2 * s + 1), draw("shift_column", 2 * s + 1)
        padded = np.pad(image, ((0, 0), (s, s), (s, s)), mode="edge")
        image = padded[:, top : top + height, left : left + width]
    if policy.jitter:
        image = reference_jitter(image, policy.jitter, draw)
    if policy.cutout:
        row, column = draw("cutout_row", height), draw("cutout_column", width)
        image = image.copy()
        top, left = row - policy.cutout // 2, column - policy.cutout // 2
        image[:, max(top, 0) : top + policy.cutout, max(left, 0) : left + policy.cutout] = 0
    if policy.erasing and draw("erase", 2**16) < round(policy.erasing * 2**16):
        top, left, h, w = reference_rectangle(image, (0.02, 0.33), 0.3, draw, "erase")
        image = image.copy()
        for channel, plane in enumerate(image):
            plane[top : top + h, left : left + w] = draw(f"erase_colour_{channel}", 256)
    return image


def reference_rectangle(image, areas, aspect, draw, name):
    """Floats are exact enough here: no computed size of these images is near half a pixel."""
    _, height, width = image.shape
    area, ratio = divmod(draw(f"{name}_size", 64 * 32), 32)
    root = (areas[0] + (areas[1] - areas[0]) * area / 63) ** 0.5
    squeeze = aspect ** (0.5 - ratio / 31)
    h = min(max(round(height * root * squeeze), 1), height)
    w = min(max(round(width * root / squeeze), 1), width)
    top = draw(f"{name}_row", 2**16) * (height - h + 1) // 2**16
    left = draw(f"{name}_column", 2**16) * (width - w + 1) // 2**16
    return top, left, h, w


def reference_resized_crop(image, min_area, draw):
    top, left, h, w = reference_rectangle(image, (min_area, 1.0), 0.75, draw, "resized")
    cut = image[:, top : top + h, left : left + w].astype(object)
    _, height, width = image.shape
    result = np.zeros_like(image)
    for row in range(height):
        y = min(max((2 * row + 1) * h * 256 // (2 * height) - 128, 0), (h - 1) * 256)
        for column in range(width):
            x = min(max((2 * column + 1) * w * 256 // (2 * width) - 128, 0), (w - 1) * 256)
            (y0, fy), (x0, fx) = divmod(y, 256), divmod(x, 256)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            left_of, right_of = (
                cut[:, y0, at] * (256 - fy) + cut[:, y1, at] * fy for at in (x0, x1)
            )
            result[:, row, column] = (left_of * (256 - fx) + right_of * fx + 2**15) // 2**16
    return result


def reference_jitter(image, strength, draw):
    reach = round(256 * strength)
    b, c, s = (
        256 - reach + draw(name, 2 * reach + 1) for name in ("brightness", "contrast", "saturation")
    )
    pixels = image.astype(object)  # Python integers
    grey = (77 * pixels[0] + 150 * pixels[1] + 29 * pixels[2] + 128) // 256
    mean = grey.sum() // grey.size
    total = (
        pixels * (b * c * s // 2**14)
        + grey * (b * c * (256 - s) // 2**14)
        + mean * (b * (256 - c) * 256 // 2**14)
    )
    return np.clip((total + 512) // 1024, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 8, 10), (3, 7, 6), (3, 32, 32)])
def test_views_agree_with_a_reference_written_sample_by_sample(name, channels, height, width):
    images = pictures(12, channels, height, width)
    samples = torch.tensor([0, 1, 2, 3, 4, 5, 99, 1000, 49_999, 123_456, 2**31, 2**32 - 1])
    rules = policy(name, seed=7)
    result = apply_views(images, samples, 3, rules)
    for image, sample, viewed in zip(images, samples.tolist(), result, strict=True):
        expected = reference_view(image.numpy(), sample, 3, rules)
        assert np.array_equal(viewed.numpy(), expected), sample


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"jitter", "all"}))
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_any_number_of_channels(name, channels):
    images = pictures(6, channels)
    result = apply_views(images, torch.arange(6), 1, policy(name))
    for sample, image in enumerate(images):
        expected = reference_view(image.numpy(), sample, 1, policy(name))
        assert np.array_equal(result[sample].numpy(), expected)


GOLDEN = {
    "none": "1c2cec9d47a7ff15e3f7b7eb3485380663e2fd13db74313ff9c9f27e34fb63bf",
    "flip": "1c2764a2538744ff9a609f555dd67256523e6ebde1df119e42e510ebd0038fe3",
    "crop": "818cac9e3cb383ebc5fa0a52e01dcfe151c94c58161c46563ee82808050d4011",
    "shift": "83688e2d37578475e4b1a4214781ef6a9dba1cc00e43a6fb36cdc331aa01a9fd",
    "jitter": "67977674ee23f43277a24d1645274d4a11518c2335feb5f82b49d9bdaa45826c",
    "cutout": "0d2ec872d4f3369f4df14a78041416b6f26240e96d980b71bcb9bcfba6d15395",
    "all": "e14d8fa39c5484850871380e6d1411bbcdbeca7f8f55e0d4b523fcfa55fe5292",
    "resized": "a608288f5c70f2e009750b05d9e0813bb64e0fa1f8b6d7c0bef1a68eff97290d",
    "erasing": "a356a1c76992aecaef7e1db05a97a1fd1ce6791cbba640b6f795a49afaba13d2",
    "newer": "aa7eeb4d5e1b849327de45111f429ec3a00444a7201e075fed85329bbb6f46b2",
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_pixels_are_those_of_every_other_machine(name):
    result = gather_views(pictures(), torch.arange(40), 2, policy(name, seed=1))
    assert hashlib.sha256(result.numpy().tobytes()).hexdigest() == GOLDEN[name]


@pytest.mark.parametrize("name", OPERATIONS)
@given(data=st.data(), view=st.integers(0, 1000), seed=st.integers(-3, 2**40))
@settings(max_examples=20, deadline=None)
def test_a_view_does_not_depend_on_the_batch_it_is_made_in(name, data, view, seed):
    rules = policy(name, seed=seed)
    chosen = data.draw(st.lists(st.integers(0, 39), max_size=8))
    whole = gather_views(pictures(), torch.arange(40), view, rules)
    samples = torch.tensor(chosen, dtype=torch.int64)
    assert torch.equal(gather_views(pictures(), samples, view, rules), whole[samples])
    assert torch.equal(apply_views(pictures()[samples], samples, view, rules), whole[samples])


@pytest.mark.parametrize("name", RANDOM)
@given(view=st.integers(0, 10**6), other=st.integers(0, 10**6), seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_views_and_seeds_differ(name, view, other, seed):
    samples = torch.arange(40)
    first = gather_views(pictures(), samples, view, policy(name, seed=seed))
    if view != other:
        second = gather_views(pictures(), samples, other, policy(name, seed=seed))
        assert not torch.equal(first, second)
    third = gather_views(pictures(), samples, view, policy(name, seed=seed + 1))
    assert not torch.equal(first, third)


@given(view=st.integers(0, 1000), seed=st.integers())
@settings(max_examples=10, deadline=None)
def test_without_operations_views_are_the_images(view, seed):
    result = gather_views(pictures(), torch.arange(40), view, policy("none", seed=seed))
    assert torch.equal(result, pictures())


@pytest.mark.parametrize("name", OPERATIONS)
def test_images_are_left_as_they_are(name):
    images = pictures().clone()
    apply_views(images, torch.arange(40), 1, policy(name))
    assert torch.equal(images, pictures())


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_empty_batch_stays_empty(name):
    nothing = torch.zeros(0, dtype=torch.int64)
    assert gather_views(pictures(), nothing, 1, policy(name)).shape == (0, 3, 8, 10)
    assert apply_views(pictures()[:0], nothing, 1, policy(name)).dtype == torch.uint8


@pytest.mark.parametrize("name", OPERATIONS)
def test_images_in_another_memory_order(name):
    images = pictures().to(memory_format=torch.channels_last)
    result = apply_views(images, torch.arange(40), 1, policy(name))
    assert torch.equal(result, apply_views(pictures(), torch.arange(40), 1, policy(name)))


def test_switching_an_operation_on_leaves_the_others_draws():
    samples = torch.arange(100)
    alone = draw_integers(samples, 3, 4, {"crop_row": 9})
    beside = draw_integers(samples, 3, 4, {"flip": 2, "crop_row": 9, "cutout_row": 32})
    assert torch.equal(alone["crop_row"], beside["crop_row"])


@pytest.mark.parametrize("bound", [2, 3, 9, 32])
def test_draws_are_uniform_and_independent(bound):
    """Chi-squared tests of pairs: with other draws, other views and neighbouring samples.

    The seeds are fixed, so this is deterministic; the limit is six deviations above the mean.
    """
    samples = torch.arange(50_000)
    cells = bound * bound
    limit = cells - 1 + 6 * (2 * (cells - 1)) ** 0.5
    for view in range(5):
        draws = draw_integers(samples, 11, view, {"flip": bound, "crop_row": bound})
        later = draw_integers(samples, 11, view + 1, {"flip": bound})
        flip = draws["flip"]
        for other in (draws["crop_row"], later["flip"], flip.roll(1)):
            counts = torch.bincount(flip * bound + other, minlength=cells).double()
            expected = len(samples) / cells
            assert ((counts - expected) ** 2 / expected).sum() < limit


def test_every_input_bit_changes_half_of_the_output_bits():
    samples = torch.arange(2**16)
    limit = 6 * 0.5 / (2**16 / 2) ** 0.5  # six deviations of the mean of 2**15 distinct pairs
    draws = draw_integers(samples, 0, 0, {"flip": 2**31 - 1})["flip"]
    for bit in range(16):
        other = draw_integers(samples ^ (1 << bit), 0, 0, {"flip": 2**31 - 1})["flip"]
        changed = torch.stack([(draws ^ other) >> place & 1 for place in range(31)])
        assert (changed.double().mean(dim=1) - 0.5).abs().max() < limit


def test_epochs_cycle_through_the_views():
    rules = ViewsConfig(num_views=3)
    assert [view_of_epoch(epoch, rules) for epoch in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_normalise_against_float64():
    images = pictures()
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 1 / 255)
    result = normalise(images, mean, std)
    expected = (images.double() / 255 - torch.tensor(mean).double()[:, None, None]) / torch.tensor(
        std
    ).double()[:, None, None]
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-4)
    assert normalise(images[:0], mean, std).shape == (0, 3, 8, 10)


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({"shift": 8}, (1, 8, 9), r"views\.shift: 8 pixels .* 8x9; allowed: 0\.\.7"),
        ({"crop_padding": 9}, (1, 9, 8), r"views\.crop_padding: 9 pixels"),
        ({"cutout": 8}, (3, 8, 8), r"views\.cutout: 8 pixels"),
        ({"jitter": 0.1}, (1, 8, 8), r"views\.jitter: needs RGB images, these have 1 channel"),
        ({"jitter": 0.1}, (4, 8, 8), "these have 4 channel"),
        ({"cutmix": 1.0, "shift": 0}, (1, 1, 8), r"views\.cutmix: images of 1x8 have no room"),
    ],
)
def test_policies_that_do_not_suit_the_images(fields, shape, message):
    with pytest.raises(UserError, match=message):
        check_views(ViewsConfig(**fields), shape)


@pytest.mark.parametrize("name", OPERATIONS)
def test_policies_that_suit_the_images(name):
    check_views(policy(name), (3, 8, 8))


@pytest.mark.parametrize("name", OPERATIONS)
def test_tables_made_in_inference_mode_serve_training(name):
    """The tables are cached; a first call in inference mode must not make them unusable later."""
    scales, rows = preprocessing._scale_and_offset, rectangles._sizes
    tables = (views._inside, views._outside, scales, draws._keys, rows)
    for table in tables:
        table.cache_clear()
    statistics = ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    samples = torch.arange(40)
    with torch.inference_mode():
        first = normalise(gather_views(pictures(), samples, 2, policy(name)), *statistics)
    second = normalise(gather_views(pictures(), samples, 2, policy(name)), *statistics)
    weights = torch.ones(1, 3, 1, 1, requires_grad=True)
    torch.nn.functional.conv2d(second, weights).sum().backward()
    assert torch.equal(first, second)
    exact = second.double().sum(dim=(0, 2, 3)).float()
    # Thousands of pixels are added in fp32, in an order that the processor chooses.
    torch.testing.assert_close(weights.grad[0, :, 0, 0], exact, rtol=1e-5, atol=1e-2)


@given(seed=st.integers(0, 2**40), view=st.integers(0, 50), share=st.floats(0.01, 1.0))
@settings(max_examples=25, deadline=None)
def test_erasing_paints_one_rectangle_and_leaves_the_rest(seed, view, share):
    images, samples = pictures(), torch.arange(40)
    result = apply_views(images, samples, view, ViewsConfig(shift=0, erasing=share, seed=seed))
    for before, after in zip(images, result, strict=True):
        changed = (before != after).any(0)
        if not changed.any():
            continue
        rows, columns = (changed.any(axis).nonzero().flatten() for axis in (1, 0))
        inside = after[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (inside == inside[:, :1, :1]).all()
        outside = torch.ones(8, 10, dtype=torch.bool)
        outside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = False
        assert torch.equal(before[:, outside], after[:, outside])
        assert outside.float().mean() > 0.5


def test_erasing_hides_the_share_of_views_that_is_asked_for():
    images, samples = torch.zeros(4000, 3, 6, 6, dtype=torch.uint8), torch.arange(4000)
    result = apply_views(images, samples, 0, ViewsConfig(shift=0, erasing=0.25))
    erased = (result > 0).flatten(1).any(1).double().mean()
    assert abs(erased - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5


def test_a_resized_crop_of_one_colour_is_that_colour():
    images = torch.full((50, 3, 9, 7), 213, dtype=torch.uint8)
    rules = ViewsConfig(shift=0, resized_crop=0.01)
    assert torch.equal(apply_views(images, torch.arange(50), 0, rules), images)


def test_a_resized_crop_keeps_no_less_than_it_may():
    """In an image that brightens evenly from left to right, the range gives the crop's width."""
    ramp = torch.arange(0, 256, 4, dtype=torch.uint8).expand(500, 1, 64, 64).contiguous()
    rules = ViewsConfig(shift=0, resized_crop=0.5)
    shown = apply_views(ramp, torch.arange(500), 0, rules).int()
    widths = ((shown[:, 0, 0, -1] - shown[:, 0, 0, 0]) / 252).double()
    smallest = (0.5 * 0.75) ** 0.5
    assert smallest - 0.03 < widths.min() < smallest + 0.06
    assert widths.max() > 0.97
