import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from krscale.errors import UserError
from krscale.store.rows import (
    Layout,
    cheapest_top_k,
    check_top_k,
    choose_top_k,
    decode,
    encode,
    pixel_sums,
    truncation_error,
)


def _logits(shape, scale=3.0, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def _softmax(logits, temperature):
    """fp64, by definition."""
    exponents = np.exp(
        np.asarray(logits, np.float64) / temperature
        - np.asarray(logits, np.float64).max(-1, keepdims=True) / temperature
    )
    return exponents / exponents.sum(-1, keepdims=True)


def _truncated(probabilities, top_k):
    """Keep the k largest entries of each row and spread the rest, one row at a time."""
    result = np.empty_like(probabilities)
    for place in np.ndindex(probabilities.shape[:-1]):
        row = probabilities[place]
        kept = np.argsort(row)[::-1][:top_k]
        result[place] = (1 - row[kept].sum()) / (len(row) - top_k)
        result[place][kept] = row[kept]
    return result


class TestEncode:
    @given(
        st.integers(2, 30),
        st.floats(0.5, 8.0),
        st.floats(0.1, 6.0),
        st.integers(0, 99),
        st.data(),
    )
    @settings(max_examples=60, deadline=None)
    def test_decodes_to_the_truncated_distribution(self, num_classes, temperature, scale, seed, d):
        top_k = cheapest_top_k(d.draw(st.integers(1, num_classes)), num_classes)
        layout = Layout(3, num_classes, top_k, temperature)
        logits = _logits((4, 3, num_classes), scale, seed)
        rows, lost = encode(logits, layout)
        exact = _softmax(logits, temperature)
        expected = exact if layout.is_dense else _truncated(exact, top_k)
        found = _softmax(decode(rows, layout), temperature)
        # fp16 keeps 11 bits; below 2^-14 it keeps multiples of 2^-24.
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-7)
        variation = 0.5 * np.abs(exact - expected).sum(-1)
        np.testing.assert_allclose(lost.numpy(), variation, atol=1e-5)

    @pytest.mark.parametrize("other", [1.0, 3.0, 8.0])
    def test_other_temperatures_are_derived(self, other):
        logits = _logits((16, 2, 12))
        layout = Layout(2, 12, 12, 2.0)
        found = _softmax(decode(encode(logits, layout)[0], layout), other)
        np.testing.assert_allclose(found, _softmax(logits, other), atol=2e-3)

    def test_sizes(self):
        dense, sparse = Layout(4, 10, 10, 1.0), Layout(4, 100, 5, 1.0)
        rows, _ = encode(_logits((3, 4, 10)), dense)
        assert rows.probabilities.shape == (3, 4, 10)
        assert rows.classes is None
        assert dense.bytes_per_row == 4 * 20 + 4
        rows, _ = encode(_logits((3, 4, 100)), sparse)
        assert rows.probabilities.shape == (3, 4, 6)
        assert rows.classes.shape == (3, 4, 5)
        assert rows.probabilities.dtype == torch.float16
        # 22 bytes per tap: five classes and probabilities, and the remaining mass.
        assert sparse.bytes_per_row == 4 * 22 + 4

    def test_class_numbers_use_all_16_bits(self):
        layout = Layout(1, 65536, 2, 1.0)
        logits = torch.zeros(2, 1, 65536)
        logits[0, 0, 40000], logits[0, 0, 65535] = 20.0, 19.0
        logits[1, 0, 0], logits[1, 0, 32768] = 20.0, 19.0
        decoded = decode(encode(logits, layout)[0], layout)
        assert decoded.topk(2).indices.squeeze(1).tolist() == [[40000, 65535], [0, 32768]]

    @pytest.mark.parametrize("num_classes", [4, 40])
    def test_certain_and_even_distributions_stay_finite(self, num_classes):
        layout = Layout(1, num_classes, cheapest_top_k(3, num_classes), 1.0)
        logits = torch.zeros(2, 1, num_classes)
        logits[0, 0, 1] = 1e4
        decoded = decode(encode(logits, layout)[0], layout)
        assert torch.isfinite(decoded).all()
        found = torch.softmax(decoded, -1)
        assert found[0, 0, 1] > 0.99999
        np.testing.assert_allclose(found[1, 0].numpy(), 1 / num_classes, rtol=1e-3)


class TestTopK:
    @given(st.integers(3, 40), st.floats(0.3, 4.0), st.floats(0.001, 0.5), st.integers(0, 50))
    @settings(max_examples=60, deadline=None)
    def test_smallest_that_meets_the_error_at_every_tap(self, num_classes, scale, error, seed):
        descending = torch.softmax(_logits((8, 3, num_classes), scale, seed), -1).sort(
            descending=True
        )[0]
        exact = descending.double().numpy()
        losses = [
            0.5 * np.abs(exact - _truncated(exact, k)).sum(-1).mean(0).max()
            for k in range(1, num_classes)
        ]
        enough = [k for k, loss in enumerate(losses, 1) if loss <= error]
        expected = enough[0] if enough else num_classes
        if any(abs(loss - error) < 1e-5 for loss in losses):
            return
        chosen = cheapest_top_k(expected, num_classes) if num_classes > 12 else num_classes
        assert choose_top_k(descending, error) == chosen

    def test_truncation_error_by_hand(self):
        descending = torch.tensor([[[0.5, 0.3, 0.2, 0.0]], [[0.25, 0.25, 0.25, 0.25]]])
        # Row 0 without its first class: 0.3, 0.2, 0.0 become 0.5 / 3 each.
        expected = (0.3 - 0.5 / 3 + 0.2 - 0.5 / 3) / 2
        assert truncation_error(descending, 1).tolist() == pytest.approx([expected])

    @pytest.mark.parametrize(
        ("top_k", "num_classes", "expected"),
        [(4, 10, 4), (5, 10, 10), (10, 10, 10), (1, 2, 2), (1, 4, 1), (5, 45, 5), (22, 45, 45)],
    )
    def test_all_classes_where_that_takes_no_more_room(self, top_k, num_classes, expected):
        assert cheapest_top_k(top_k, num_classes) == expected

    def test_more_than_the_classes_is_refused(self):
        check_top_k(10, 10)
        with pytest.raises(UserError, match=r"store\.top_k: 11 is more than the 10 classes"):
            check_top_k(11, 10)
        with pytest.raises(UserError, match="can number 65536 classes; the data has 65537"):
            check_top_k(0, 65537)


class TestPixelSums:
    def test_equals_the_definition_in_integers_of_any_size(self):
        images = torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 4) * 10
        mask = 2**64 - 1

        def signed(value):
            value &= mask
            return value - 2**64 if value >= 2**63 else value

        expected = []
        for image in images.flatten(1).tolist():
            total = 0
            for place, pixel in enumerate(image, 1):
                weight = signed(place * 0x1E3779B97F4A7C15)
                weight = signed((weight ^ (weight >> 30)) * 0x3F58476D1CE4E5B9)
                weight = signed((weight ^ (weight >> 27)) * 0x14D049BB133111EB)
                total += pixel * (weight | 1)
            total = signed(total)
            expected.append((total ^ (total >> 32)) & 0xFFFFFFFF)
        assert pixel_sums(images).tolist() == expected

    @given(st.integers(0, 74), st.integers(1, 255))
    @settings(deadline=None)
    def test_one_pixel_changes_it(self, place, change):
        images = torch.randint(
            256, (1, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        changed = images.clone()
        changed.view(-1)[place] += change
        assert pixel_sums(changed).item() != pixel_sums(images).item()

    def test_moved_pixels_change_it_and_company_does_not(self):
        images = torch.randint(256, (8, 1, 6, 6), dtype=torch.uint8)
        assert pixel_sums(images[3:5]).tolist() == pixel_sums(images)[3:5].tolist()
        assert (pixel_sums(images.roll(1, -1)) != pixel_sums(images)).all()
        assert (pixel_sums(images.flip(-1)) != pixel_sums(images)).all()
