import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from krscale.data.ahead import AHEAD_BYTES, ReadAhead, one_ahead


class TestOneAhead:
    def test_in_order_and_one_ahead(self):
        made = []

        def make(step):
            made.append((step, threading.current_thread() is threading.main_thread()))
            return step

        with ThreadPoolExecutor(1) as pool:
            seen = []
            for step in one_ahead(make, 4, pool):
                deadline = time.monotonic() + 10
                while len(made) < min(step + 2, 4) and time.monotonic() < deadline:
                    time.sleep(0.001)
                assert len(made) == min(step + 2, 4)
                seen.append(step)
            assert list(one_ahead(make, 0, pool)) == []
        assert seen == [0, 1, 2, 3]
        assert made == [(step, False) for step in range(4)]

    def test_errors_reach_the_caller(self):
        def make(step):
            if step == 2:
                raise ValueError("broken row")
            return step

        with ThreadPoolExecutor(1) as pool:
            batches = one_ahead(make, 4, pool)
            assert [next(batches), next(batches)] == [0, 1]
            with pytest.raises(ValueError, match="broken row"):
                next(batches)


class TestReadAhead:
    @given(
        sizes=st.lists(st.integers(0, 5), min_size=1, max_size=12),
        num_rows=st.integers(2, 9),
        later=st.integers(0, 11),
    )
    def test_each_step_gets_what_is_read_of_it_alone(self, sizes, num_rows, later):
        """Any number of rows may fit, shares may be empty, and an epoch may start later."""
        samples = torch.arange(sum(sizes)).split(sizes)
        asked = []

        def read(wanted):
            asked.append(len(wanted))
            small = wanted.view(-1, 1).to(torch.uint8)
            rest = small.expand(-1, AHEAD_BYTES // num_rows - 3)
            return {"taps": (small,), "where": (rest, -small.view(-1, 1, 1).expand(-1, 2, 1))}

        of_teacher = ReadAhead(read, samples.__getitem__, len(sizes))
        steps = range(min(later, len(sizes) - 1), len(sizes))
        for step in steps:
            found, want = of_teacher(step), samples[step]
            assert found["taps"][0][:, 0].tolist() == want.tolist()
            assert found["where"][0][:, -1].tolist() == want.tolist()
            assert (-found["where"][1][:, 1, 0]).tolist() == want.tolist()
        assert sum(asked) == sum(sizes[step] for step in steps)  # each row once
        assert max(asked) <= max(num_rows, *sizes)

    def test_several_steps_are_read_at_once_after_the_first(self):
        asked = []

        def read(samples):
            asked.append(len(samples))  # ten rows fit
            return {"taps": (torch.zeros(len(samples), 2, AHEAD_BYTES // 80),)}

        of_teacher = ReadAhead(read, lambda step: torch.full((3,), step), 8)
        for step in range(8):
            of_teacher(step)
        assert asked == [3, 3 * 3, 3 * 3, 3]

    def test_a_step_without_samples_does_not_make_all_others_be_read(self):
        asked = []

        def read(samples):
            asked.append(len(samples))
            return {"taps": (torch.zeros(len(samples), AHEAD_BYTES // 8),)}  # two rows fit

        of_teacher = ReadAhead(read, lambda step: torch.arange(min(step, 1)), 6)
        assert [len(of_teacher(step)["taps"][0]) for step in range(6)] == [0, 1, 1, 1, 1, 1]
        assert asked == [0, 2, 2, 1]
