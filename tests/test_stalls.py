"""Which trials hang, by a simulated clock."""

import pytest

from krscale import stalls
from krscale.stalls import (
    LEAST_SECONDS,
    LEAST_SECONDS_AT_THE_END,
    START_SECONDS,
    TIMES_THE_LONGEST,
    Sign,
    StallWatch,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def look_on(watch: StallWatch, clock: Clock, seconds: float, sign: Sign) -> dict[str, float]:
    """Check one trial with a constant sign once a second; return what hangs at the end."""
    found: dict[str, float] = {}
    for _ in range(round(seconds)):
        clock.now += 1.0
        found = watch.look({"a": sign})
    return found


def test_a_trial_without_a_sign_for_the_given_seconds_hangs_and_not_before() -> None:
    clock = Clock()
    watch = StallWatch(30.0, clock)
    assert watch.look({"a": Sign(True, 0)}) == {}
    assert look_on(watch, clock, 29, Sign(True, 0)) == {}
    assert look_on(watch, clock, 1, Sign(True, 0)) == {"a": 30.0}
    assert look_on(watch, clock, 29, Sign(True, 1)) == {}, "any step begins a new pause"
    assert watch.sentence(30.0) == (
        "it made no progress for 30 s and was ended (search.stall_seconds = 30)"
    )


def test_auto_follows_the_longest_pause_that_ended() -> None:
    clock = Clock()
    watch = StallWatch("auto", clock)
    assert watch.limit() == LEAST_SECONDS
    look_on(watch, clock, 100, Sign(True, 0))
    look_on(watch, clock, 1, Sign(True, 1))
    assert watch.limit() == pytest.approx(TIMES_THE_LONGEST * 100)
    look_on(watch, clock, 200, Sign(True, 1))
    assert watch.limit() == pytest.approx(TIMES_THE_LONGEST * 100), "not yet over"


@pytest.mark.parametrize("setting", ["off", 0.0])
def test_off_waits_for_ever_until_the_time_of_the_search_is_up(setting: float | str) -> None:
    clock = Clock()
    watch = StallWatch(setting, clock)  # type: ignore[arg-type]
    assert look_on(watch, clock, 5000, Sign(True, 0)) == {}
    assert watch.look({"a": Sign(True, 0)}, at_the_end=True) == {"a": 4999.0}
    assert watch.limit(at_the_end=True) == LEAST_SECONDS_AT_THE_END
    assert "search.max_wall_seconds have passed" in watch.sentence(4999.0, at_the_end=True)


def test_the_start_of_a_worker_and_a_wait_for_one_are_no_pause_of_the_trial() -> None:
    clock = Clock()
    watch = StallWatch(10.0, clock)
    assert look_on(watch, clock, START_SECONDS - 1, Sign(False, None)) == {}
    assert look_on(watch, clock, 1000, Sign(True, 0)) != {}
    for _ in range(1000):
        clock.now += 1.0
        assert watch.look({}) == {}, "it waits"
    assert look_on(watch, clock, 9, Sign(True, 0)) == {}
    assert watch.longest == 0.0, "a start tells nothing of the pace"


def test_a_driver_that_was_stopped_itself_takes_no_trial_for_stalled() -> None:
    clock = Clock()
    watch = StallWatch(10.0, clock)
    watch.look({"a": Sign(True, 0)})
    clock.now += 3600.0
    assert watch.look({"a": Sign(True, 0)}) == {}
    assert stalls.LONGEST_LOOK < 10.0
