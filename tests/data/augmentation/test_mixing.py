"""Mixed views: which images are mixed, with which weights, and that nothing else affects it."""

import hashlib
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from krscale.config import ViewsConfig
from krscale.data.augmentation import mixing
from krscale.data.augmentation.mixing import mix, partners
from krscale.data.augmentation.views import apply_views, gather_views

KINDS = {
    "mixup": {"mixup": 0.8},
    "cutmix": {"cutmix": 1.0},
    "both": {"mixup": 0.2, "cutmix": 1.0, "flip": True, "erasing": 0.5},
}
NUM_SAMPLES = 40
every_kind = pytest.mark.parametrize("kind", KINDS)
seeds = st.integers(-3, 2**40)


def policy(kind: str, **fields) -> ViewsConfig:
    return ViewsConfig(**{"shift": 0, **KINDS[kind], **fields})


@cache
def pictures(height: int = 8, width: int = 10) -> torch.Tensor:
    generator = np.random.default_rng(0)
    shape = (NUM_SAMPLES, 3, height, width)
    return torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8))


def mixed(samples: torch.Tensor, view: int, rules: ViewsConfig) -> tuple[torch.Tensor, ...]:
    others = partners(samples, view, rules, NUM_SAMPLES)
    own, other = (gather_views(pictures(), rows, view, rules) for rows in (samples, others))
    return (*mix(own, other, samples, view, rules), others)


@every_kind
@given(data=st.data(), view=st.integers(0, 1000), seed=seeds)
@settings(max_examples=20, deadline=None)
def test_a_mixed_view_does_not_depend_on_the_batch_it_is_made_in(kind, data, view, seed):
    rules = policy(kind, seed=seed)
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, 39), max_size=8)), dtype=torch.int64)
    whole = mixed(torch.arange(NUM_SAMPLES), view, rules)
    for of_all, found in zip(whole, mixed(chosen, view, rules), strict=True):
        assert torch.equal(found, of_all[chosen])


@every_kind
@given(view=st.integers(0, 1000), seed=seeds, height=st.integers(2, 9), width=st.integers(2, 9))
@settings(max_examples=20, deadline=None)
def test_the_weight_is_what_is_seen_of_each_image(kind, view, seed, height, width):
    """For an image of 0 and one of 255, the mean of the mixture is the weight of the second."""
    black = torch.zeros(200, 1, height, width, dtype=torch.uint8)
    images, weights = mix(black, 255 - black, torch.arange(200), view, policy(kind, seed=seed))
    assert ((weights > 0) & (weights < 1)).all()
    assert images.dtype == torch.uint8
    assert weights.dtype == torch.float32
    seen = images.double().mean((1, 2, 3)) / 255
    # CutMix copies whole pixels, so the mean is exact. Mixup rounds to whole grey levels.
    tolerance = 1e-6 if kind == "cutmix" else 0.5 / 255
    torch.testing.assert_close(seen, 1 - weights.double(), rtol=0, atol=tolerance + 1e-6)


@given(view=st.integers(0, 1000), seed=seeds)
@settings(max_examples=20, deadline=None)
def test_cutmix_pastes_one_rectangle_and_leaves_the_rest(view, seed):
    rules, samples = policy("cutmix", seed=seed), torch.arange(NUM_SAMPLES)
    zeros = torch.zeros(NUM_SAMPLES, 3, 8, 10, dtype=torch.uint8)
    where, _ = mix(zeros, zeros + 1, samples, view, rules)
    for plane in where[:, 0].bool():
        rows, columns = (plane.any(axis) for axis in (1, 0))
        assert torch.equal(plane, rows[:, None] & columns[None, :])
        for covered in (rows, columns):
            places = covered.nonzero().flatten()
            assert covered.sum() == places[-1] - places[0] + 1 < len(covered)
    images, _, others = mixed(samples, view, rules)
    assert torch.equal(images, torch.where(where.bool(), pictures()[others], pictures()))


@given(view=st.integers(0, 1000), seed=seeds, num_samples=st.integers(2, 60))
@settings(max_examples=20, deadline=None)
def test_a_partner_is_another_sample_of_the_split(view, seed, num_samples):
    samples = torch.arange(num_samples)
    others = partners(samples, view, policy("mixup", seed=seed), num_samples)
    assert ((others >= 0) & (others < num_samples) & (others != samples)).all()


def test_a_single_sample_is_its_own_partner():
    assert partners(torch.zeros(1, dtype=torch.int64), 0, policy("mixup"), 1).tolist() == [0]


def test_every_other_sample_is_a_partner_as_often():
    samples = torch.arange(5)
    counts = torch.zeros(5, 5)
    for view in range(2000):
        others = partners(samples, view, policy("mixup"), 5)
        counts[samples, others] += 1
    others = counts[~torch.eye(5, dtype=torch.bool)]
    assert counts.diagonal().sum() == 0
    assert ((others - 500) / (500 * 0.75) ** 0.5).abs().max() < 5


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.4, 1.0, 2.5, 10.0])
def test_weights_are_of_the_beta_distribution(alpha):
    """The weights are compared with NumPy's draws and with the known moments."""
    samples = torch.arange(100_000)
    black = torch.zeros(len(samples), 1, 1, 1, dtype=torch.uint8)
    _, found = mix(black, black, samples, 0, ViewsConfig(mixup=alpha))
    drawn = np.random.default_rng(1).beta(alpha, alpha, len(samples))
    levels = np.clip(np.rint(drawn * 256), 1, 255) / 256
    cuts = np.linspace(0, 1, 41)
    ours, theirs = (np.searchsorted(np.sort(x), cuts) / len(samples) for x in (found, levels))
    assert np.abs(ours - theirs).max() < 0.009  # Kolmogorov-Smirnov, at a level of 6e-4
    assert abs(float(found.mean()) - 0.5) < 5 * 0.5 / len(samples) ** 0.5
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(float(found.double().var()) / variance - 1) < 0.03


def test_either_kind_takes_half_of_the_views():
    black = torch.zeros(4000, 1, 4, 4, dtype=torch.uint8)
    images, _ = mix(black, 255 - black, torch.arange(4000), 0, policy("both"))
    pasted = ((images == 0) | (images == 255)).flatten(1).all(1).double().mean()
    assert abs(pasted - 0.5) < 5 * 0.5 / 4000**0.5 + 2 / 255


@every_kind
def test_draws_are_those_of_every_other_machine(kind):
    images, weights, others = mixed(torch.arange(NUM_SAMPLES), 2, policy(kind, seed=1))
    digest = hashlib.sha256(images.numpy().tobytes())
    digest.update(weights.numpy().tobytes() + others.numpy().tobytes())
    assert digest.hexdigest() == GOLDEN[kind]


GOLDEN = {
    "mixup": "dc0cb25a3f958582fba44bf2af2891e418f6d7f63a3f22c146494c47b05ffefd",
    "cutmix": "9f9b98904bb3a89dc1b8ba963301c52b4556dba9156aa9e7ce048aa5149109b1",
    "both": "9a09742b2e4988990c56c54d6ccac02ef99955330b60fe49ac19fe83cf38e51b",
}


@every_kind
def test_views_and_seeds_differ(kind):
    samples = torch.arange(NUM_SAMPLES)
    first = mixed(samples, 0, policy(kind))
    for other in (mixed(samples, 1, policy(kind)), mixed(samples, 0, policy(kind, seed=1))):
        assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_what_is_mixed_is_the_partners_own_view():
    rules = policy("both", seed=3)
    samples = torch.tensor([4, 7])
    others = partners(samples, 5, rules, NUM_SAMPLES)
    own, other = (apply_views(pictures()[s], s, 5, rules) for s in (samples, others))
    expected, _ = mix(own, other, samples, 5, rules)
    assert torch.equal(mixed(samples, 5, rules)[0], expected)


@every_kind
def test_an_empty_batch_stays_empty(kind):
    images, weights, others = mixed(torch.zeros(0, dtype=torch.int64), 0, policy(kind))
    assert images.shape == (0, 3, 8, 10)
    assert weights.shape == others.shape == (0,)


def test_tables_made_in_inference_mode_serve_training():
    for table in (mixing._thresholds, mixing._pasted):
        table.cache_clear()
    with torch.inference_mode():
        first = mixed(torch.arange(NUM_SAMPLES), 2, policy("both"))
    images, weights, _ = mixed(torch.arange(NUM_SAMPLES), 2, policy("both"))
    loss = (torch.ones(1, requires_grad=True) * weights).sum()
    loss.backward()
    assert torch.equal(images, first[0])
