"""Schedules: where they start, where they end, and what they are called."""

import pytest

from krscale.errors import UserError
from krscale.knowledge.schedule import scheduled, share_left


@pytest.mark.parametrize(
    ("schedule", "values"),
    [("constant", (0.6, 0.6, 0.6)), ("rising", (0.0, 0.15, 0.6)), ("falling", (0.6, 0.45, 0.0))],
)
def test_values_at_the_start_a_quarter_and_the_end(
    schedule: str, values: tuple[float, ...]
) -> None:
    found = [scheduled(0.6, schedule, progress) for progress in (0.0, 0.25, 1.0)]
    assert found == pytest.approx(values)


def test_unknown_schedule_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown schedule 'risng'\. Did you mean 'rising'"):
        scheduled(0.5, "risng", 0.0)


@pytest.mark.parametrize("until", [0.25, 0.7, 1.0])
def test_what_falls_is_whole_at_the_start_and_gone_for_good(until: float) -> None:
    progress = [step / 20 for step in range(21)]
    left = [share_left(at, until) for at in progress]
    assert left[0] == 1.0
    assert left == sorted(left, reverse=True)
    assert all((share > 0.0) == (at < until) for share, at in zip(left, progress, strict=True))
    assert share_left(until / 2, until) == pytest.approx(0.5)
