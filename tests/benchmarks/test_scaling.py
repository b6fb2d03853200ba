"""docs/scaling.md is what its program computes, and the program computes what it should."""

from __future__ import annotations

from dataclasses import replace

import pytest
import scaling
from parts.at_size import Assumed, Measured, Size, Task
from parts.on_paper import OnPaper

NETWORK = Size(parameters=1e6, flops=1e9, activations=1e6, norms=10)
TASK = Task(
    name="a task", side=10, num_train=1_000, num_views=2, num_epochs=10, teacher_epochs=0,
    batch=100, num_parts=1, num_taps=2, where_bytes=8, teacher=NETWORK, students=(NETWORK,),
    checkpoint_seconds=5.0,
)  # fmt: skip
MEASURED = Measured(1.0, 0.0, 1.0, 10.0, 1_000.0, 0.5, 3)


def search(gpus: int, num_trials: int = 4, **assumed: float) -> OnPaper:
    return OnPaper(TASK, gpus, num_trials, 1, Assumed(**assumed), MEASURED)


def test_the_page_is_what_is_computed() -> None:
    assert scaling.main(["--check"]) == 0


def test_a_step_is_bound_by_what_takes_longest() -> None:
    by_memory = 2 * 20 * 1e6 * 100 / (3350e9 * 0.6)
    assert search(1).step_seconds(NETWORK) == (pytest.approx(by_memory), "memory")
    slow = search(1, gpu_tflops=1.0).step_seconds(NETWORK)
    assert slow == (pytest.approx(3 * 1e9 * 100 / 0.5e12), "arithmetic")
    started = replace(search(1), measured=MEASURED._replace(part_ms=1e4))
    assert started.step_seconds(NETWORK) == (10.0, "kernels' starts")


@pytest.mark.parametrize(("gpus", "rounds"), [(1, 4), (2, 2), (3, 2), (4, 1), (100, 1)])
def test_trials_take_the_places_in_turn(gpus: int, rounds: int) -> None:
    paper = search(gpus)
    one = paper.trial_seconds(NETWORK) * MEASURED.epochs_share
    trials = paper.phases()["trials"]
    assert trials.wall == pytest.approx(rounds * one)
    assert trials.used == pytest.approx(4 * one)


def test_a_store_has_its_real_bytes() -> None:
    # 2 taps of 1,000 classes, 10 of them in 32 bits; 2 fp16; a check sum; the places.
    assert TASK.row_bytes(3) == 4 * 200 + 2 * 2 + 4 + 8
    assert TASK.store_bytes(3) == 2_000 * TASK.row_bytes(3)


def test_shared_steps_lose_to_what_they_exchange() -> None:
    assert search(1).exchange(NETWORK, 1).gradients == 0.0
    inside, between = (search(1).exchange(NETWORK, number) for number in (8, 16))
    assert inside.norms == pytest.approx(2 * 10 * 25e-6)
    assert 0 < between.efficiency < inside.efficiency < 1
