"""Stores of distributions over positions: three bits a cell, and what they cost."""

import pytest
import torch
from store.test_features import SAMPLES, STAGES, expected_of, of

from krscale.knowledge.features import feature_shapes
from krscale.knowledge.where import where_distributions
from krscale.store import FeatureStore, StoreCheckError, WhereLayout, check_store
from krscale.store.coding import decode_features, deviations, encode, lost

CELLS = ((4, 4), (2, 2))


def prepare(small, **arguments):
    small.prepare(layout=WhereLayout(CELLS), **arguments)
    return FeatureStore.open(small.path, small.key)


def shares(num_samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    stages = [torch.randn(num_samples, *s, generator=generator).relu() for s in STAGES]
    return where_distributions(stages)


def flat(distributions):
    return torch.cat([d.flatten(1) for d in distributions], dim=1)


def test_cells_follow_from_the_stages():
    assert feature_shapes("where", STAGES) == CELLS


@pytest.mark.parametrize(
    ("cells", "num_bytes"),
    [
        (((4, 4),), 6 + 2),
        (((4, 4), (4, 4), (4, 4)), 18 + 2),
        (((4, 4), (4, 4), (2, 2)), 18 + 2),
        (((2, 2), (0, 0), (3, 4)), 6 + 2),
    ],
)
def test_bytes(cells, num_bytes):
    layout = WhereLayout(cells)
    assert layout.bytes_per_row == num_bytes
    rows = encode(torch.rand(5, sum(r * c for r, c in cells)), layout)
    assert rows.values.dtype == torch.int16
    assert rows.values.nbytes == 5 * (num_bytes - 2)


def test_distributions_come_back_but_for_the_rounding():
    layout, exact = WhereLayout((*CELLS, (0, 0))), (*shares(200), torch.zeros(200, 0, 0))
    rows = encode(flat(exact), layout)
    found = decode_features(rows, layout)
    assert [f.shape for f in found] == [e.shape for e in exact]
    for kept in found[:2]:
        torch.testing.assert_close(kept.sum(dim=(1, 2)), torch.ones(200))
    cost = lost(flat(exact), rows, layout)
    by_hand = [0.5 * (k - e).abs().sum(dim=(1, 2)) for k, e in zip(found, exact, strict=True)]
    torch.testing.assert_close(cost, torch.stack(by_hand, dim=1))
    assert cost.mean() < 0.04
    assert cost[:, 2].max() == 0.0


def test_the_largest_cell_and_empty_ones_are_exact_in_their_order():
    one = torch.zeros(1, 16)
    one[0, 5] = 1.0
    layout = WhereLayout(((4, 4),))
    assert torch.equal(decode_features(encode(one, layout), layout)[0].flatten(1), one)
    even = torch.full((1, 16), 1 / 16)
    assert torch.equal(decode_features(encode(even, layout), layout)[0].flatten(1), even)


def test_small_changes_pass_and_large_ones_do_not():
    layout, exact = WhereLayout(CELLS), flat(shares(50))
    rows = encode(exact, layout)
    differences, allowed = deviations(rows, exact, layout)
    assert (differences <= allowed).all()
    differences, allowed = deviations(rows, flat(shares(50, seed=1)), layout)
    assert not (differences <= allowed).flatten(1).all(dim=1).any()


def test_a_store_of_them(small):
    of(small, "where")
    store = prepare(small)
    for view in (2, 0):
        expected = expected_of(small, "where", view)
        for found, exact in zip(store.features(view, SAMPLES), expected, strict=True):
            assert found.shape == exact.shape
            assert found.dtype == torch.float32
            assert (0.5 * (found - exact).abs().sum(dim=(1, 2))).max() < 0.12
    assert max(store.manifest.encoding_error) < 0.05
    assert store.info()["bits"] == 3
    assert store.info()["shapes"] == [[4, 4], [2, 2]]
    assert [f.shape[0] for f in store.features(1, SAMPLES[:0])] == [0, 0]
    assert check_store(small.spec(), 12).num_rows == 12


def test_a_check_finds_another_teacher_and_other_pixels(small):
    of(small, "where")
    prepare(small)

    def other():
        tapped, reader = small.open_teacher()
        with torch.no_grad():
            for parameter in tapped.parameters():
                parameter.add_(torch.randn_like(parameter))
        return tapped, reader

    with pytest.raises(StoreCheckError, match="outputs are others"):
        check_store(small.spec(open_teacher=other), 12)
    moved = small.views.model_copy(update={"seed": 7})
    with pytest.raises(StoreCheckError, match="pixels of view"):
        check_store(small.spec(views=moved), 12)
