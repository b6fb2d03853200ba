"""What `--dry-run` prints about a search."""

import pytest

from krscale.config import load
from krscale.search.plan import describe_plan


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((), []),
        (
            ("train.num_workers=3", "search.cpus_per_trial=2"),
            ["  workers: 3 share each trial, each with 2 CPU and a GPU if there are enough"],
        ),
        (
            ("train.num_workers=2", "search.gpus_per_trial=0"),
            ["  workers: 2 share each trial, each with 1 CPU and 0 GPU"],
        ),
        (
            ("train.max_workers=4", "search.gpus_per_trial=0"),
            ["  workers: 1 to 4, as there is room, share each trial, each with 1 CPU and 0 GPU"],
        ),
    ],
)
def test_workers_of_a_trial_are_said(settings: tuple[str, ...], expected: list[str]) -> None:
    lines = describe_plan(load(None, settings)).splitlines()
    assert [line for line in lines if line.startswith("  workers")] == expected
