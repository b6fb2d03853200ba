import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from krscale.errors import UserError
from krscale.store.layout import ROUNDED_BITS, Layout, cheapest_top_k, check_top_k
from krscale.store.rows import (
    choose_layout,
    decode,
    deviations,
    encode,
    mean_error,
    pixel_sums,
    variation,
)


def _logits(shape, scale=3.0, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def _softmax(logits, temperature=1.0):
    """fp64, by definition."""
    logits = np.asarray(logits, np.float64) / temperature
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
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


def _rounded(logits, bits):
    """Even steps between the smallest and the largest, one row at a time."""
    result = np.empty(logits.shape)
    for place in np.ndindex(logits.shape[:-1]):
        row = logits[place].astype(np.float64)
        step = (row.max() - row.min()) / (2**bits - 1)
        result[place] = row.max() - step * np.round((row.max() - row) / step)
    return result


class TestExactAndTruncated:
    @given(
        st.integers(2, 30),
        st.floats(0.5, 8.0),
        st.floats(0.1, 6.0),
        st.integers(0, 99),
        st.data(),
    )
    @settings(max_examples=60, deadline=None)
    def test_decodes_to_the_distribution(self, num_classes, temperature, scale, seed, data):
        top_k = cheapest_top_k(data.draw(st.integers(1, num_classes)), num_classes)
        layout = Layout(3, num_classes, top_k, temperature)
        logits = _logits((4, 3, num_classes), scale, seed)
        rows = encode(logits, layout)
        exact = _softmax(logits, temperature)
        expected = _truncated(exact, top_k) if layout.is_truncated else exact
        found = _softmax(decode(rows, layout), temperature)
        # fp16 keeps 11 bits; below 2^-14 it keeps multiples of 2^-24.
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-7)
        lost = 0.5 * np.abs(exact - expected).sum(-1)
        np.testing.assert_allclose(variation(logits, rows, layout).numpy(), lost, atol=5e-4)

    @pytest.mark.parametrize("other", [1.0, 3.0, 8.0])
    def test_other_temperatures_are_derived(self, other):
        logits = _logits((16, 2, 12))
        layout = Layout(2, 12, 12, 2.0)
        found = _softmax(decode(encode(logits, layout), layout), other)
        np.testing.assert_allclose(found, _softmax(logits, other), atol=2e-3)

    def test_class_numbers_use_all_16_bits(self):
        layout = Layout(1, 65536, 2, 1.0)
        logits = torch.zeros(2, 1, 65536)
        logits[0, 0, 40000], logits[0, 0, 65535] = 20.0, 19.0
        logits[1, 0, 0], logits[1, 0, 32768] = 20.0, 19.0
        decoded = decode(encode(logits, layout), layout)
        assert decoded.topk(2).indices.squeeze(1).tolist() == [[40000, 65535], [0, 32768]]


class TestRounded:
    @given(st.integers(2, 40), st.integers(1, 5), st.sampled_from(ROUNDED_BITS), st.integers(0, 99))
    @settings(max_examples=60, deadline=None)
    def test_decodes_to_even_steps(self, num_classes, num_taps, bits, seed):
        layout = Layout(num_taps, num_classes, num_classes, 4.0, bits)
        logits = _logits((5, num_taps, num_classes), 3.0, seed)
        decoded = decode(encode(logits, layout), layout).numpy().astype(np.float64)
        expected = _rounded(logits.numpy(), bits)
        steps = (logits.amax(-1) - logits.amin(-1)).numpy()[..., None] / (2**bits - 1)
        off = (decoded - decoded.max(-1, keepdims=True)) - (
            expected - expected.max(-1, keepdims=True)
        )
        # A value in the middle between two steps may go either way.
        assert (np.abs(off) < 1.001 * steps + 1e-2).all()
        assert (np.abs(off) < 1e-2).mean() > 0.97
        exact = logits.numpy() - logits.numpy().max(-1, keepdims=True)
        off = decoded - decoded.max(-1, keepdims=True) - exact
        assert (np.abs(off) < 0.501 * steps + 1e-2).all()

    def test_packed_by_hand(self):
        layout = Layout(1, 12, 12, 1.0, 3)
        levels = [0, 1, 2, 3, 4, 5, 6, 7, 3, 5, 7, 1]
        rows = encode(torch.tensor([[levels]]).float() * 2.0 - 9.0, layout)
        assert rows.values.tolist() == [[14.0]]
        first = sum(level << (3 * n) for n, level in enumerate(levels[:10]))
        second = 7 | 1 << 3
        assert rows.codes.tolist() == [[first, second]]
        assert decode(rows, layout).tolist() == [[[2.0 * level for level in levels]]]

    def test_the_highest_bit_of_a_word(self):
        layout = Layout(1, 4, 4, 1.0, 8)
        rows = encode(torch.tensor([[[0.0, 255.0, 100.0, 255.0]]]), layout)
        assert rows.codes.item() < 0
        assert decode(rows, layout).tolist() == [[[0.0, 255.0, 100.0, 255.0]]]

    def test_more_bits_lose_less(self):
        logits = _logits((64, 3, 45))
        errors = [
            mean_error(logits, Layout(3, 45, 45, 2.0, bits)).max().item() for bits in ROUNDED_BITS
        ]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.005 < 0.05 < errors[0]


@pytest.mark.parametrize(
    "layout",
    [
        Layout(2, 9, 9, 1.0),
        Layout(2, 40, 3, 1.0),
        Layout(2, 9, 9, 1.0, 4),
        Layout(2, 40, 40, 1.0, 3),
    ],
    ids=["exact", "truncated", "rounded to 4 bits", "rounded to 3 bits"],
)
class TestEveryLayout:
    def test_size_is_what_was_said(self, layout):
        rows = encode(_logits((7, 2, layout.num_classes)), layout)
        num_bytes = rows.values.nbytes + (0 if rows.codes is None else rows.codes.nbytes)
        assert num_bytes == 7 * (layout.bytes_per_row - 4)
        assert layout.bytes_per_view_and_tap == layout.bytes_per_row / 2

    def test_certain_and_even_distributions(self, layout):
        logits = torch.zeros(2, 2, layout.num_classes)
        logits[0, :, 1] = 1e5
        found = torch.softmax(decode(encode(logits, layout), layout), -1)
        assert (found[0, :, 1] > 0.99999).all()
        np.testing.assert_allclose(found[1].numpy(), 1 / layout.num_classes, rtol=1e-3)

    def test_empty_batch(self, layout):
        rows = encode(torch.zeros(0, 2, layout.num_classes), layout)
        assert decode(rows, layout).shape == (0, 2, layout.num_classes)

    def test_what_was_encoded_does_not_deviate(self, layout):
        logits = _logits((32, 2, layout.num_classes))
        differences, allowed = deviations(encode(logits, layout), logits + 5.0, layout)
        assert (differences <= allowed).all()

    def test_nor_do_logits_whose_span_is_beyond_fp16(self, layout):
        logits = _logits((4, 2, layout.num_classes))
        logits[:, :, 1:] = torch.finfo(torch.float32).min  # classes that are masked out
        logits[2:] = 1e6 * _logits((2, 2, layout.num_classes))
        differences, allowed = deviations(encode(logits, layout), logits, layout)
        assert (differences <= allowed).all()

    def test_another_teacher_deviates(self, layout):
        logits = _logits((32, 2, layout.num_classes))
        rows = encode(logits, layout)
        logits[:, 1] += 0.5 * _logits((32, layout.num_classes), 1.0, seed=1)
        differences, allowed = deviations(rows, logits, layout)
        deviates = (differences > allowed).any(-1)
        assert not deviates[:, 0].any()
        assert deviates[:, 1].float().mean() > 0.8

    def test_nan_deviates(self, layout):
        logits = _logits((4, 2, layout.num_classes))
        differences, allowed = deviations(encode(logits, layout), logits * np.nan, layout)
        assert not (differences <= allowed).flatten(1).all(1).any()


class TestChooseLayout:
    def test_least_room_that_meets_the_error(self):
        logits = _logits((64, 3, 20))
        candidates = [
            *(Layout(3, 20, k, 4.0) for k in range(1, 9)),
            *(Layout(3, 20, 20, 4.0, bits) for bits in ROUNDED_BITS),
            Layout(3, 20, 20, 4.0),
        ]
        exact = _softmax(logits, 4.0)
        chosen = set()
        for max_error in (0.3, 0.1, 0.05, 0.02, 0.01, 0.004, 1e-4):

            def error(layout):
                found = _softmax(decode(encode(logits, layout), layout), 4.0)
                return 0.5 * np.abs(found - exact).sum(-1).mean(0).max()

            met = [layout for layout in candidates if error(layout) <= max_error]
            layout = choose_layout(logits, 4.0, max_error)
            assert error(layout) <= max_error
            assert layout.bytes_per_row == min(other.bytes_per_row for other in met)
            chosen.add((layout.top_k, layout.bits))
        assert (20, 16) in chosen
        assert len(chosen) >= 5

    def test_truncates_where_few_classes_hold_nearly_all(self):
        logits = _logits((16, 2, 300), 0.1)
        logits[..., :3] += 12.0
        layout = choose_layout(logits, 1.0, 0.01)
        assert (layout.top_k, layout.bits) == (3, 16)

    @pytest.mark.parametrize(
        ("top_k", "num_classes", "expected"),
        [(4, 10, 4), (5, 10, 10), (10, 10, 10), (1, 2, 2), (1, 4, 1), (5, 45, 5), (22, 45, 45)],
    )
    def test_all_classes_where_that_takes_no_more_room(self, top_k, num_classes, expected):
        assert cheapest_top_k(top_k, num_classes) == expected

    def test_bytes_by_hand(self):
        # 5 classes and probabilities of 4 bytes, the rest in 2; 4 bytes for the check sum.
        assert Layout(6, 45, 5, 4.0).bytes_per_row == 6 * 22 + 4
        assert Layout(6, 10, 10, 4.0).bytes_per_row == 6 * 20 + 4
        # 270 codes of 4 bits are 34 words; a distance of 2 bytes per tap.
        assert Layout(6, 45, 45, 4.0, 4).bytes_per_row == 34 * 4 + 6 * 2 + 4

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
        images = torch.randint(
            256, (8, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        assert pixel_sums(images[3:5]).tolist() == pixel_sums(images)[3:5].tolist()
        assert (pixel_sums(images.roll(1, -1)) != pixel_sums(images)).all()
        assert (pixel_sums(images.flip(-1)) != pixel_sums(images)).all()
