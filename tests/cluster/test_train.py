"""What workers of Ray Train raise, as the command that waits for them sees it."""

import pytest
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from krscale.cluster.train import _user_error
from krscale.errors import DiskFullError


def test_a_mistake_of_the_user_is_found_among_what_the_workers_raised() -> None:
    full = DiskFullError("no room for /runs/a/state")
    lost = RuntimeError("[gloo] Connection closed by peer")
    assert _user_error(WorkerGroupError("2 workers failed", {0: lost, 1: full})) is full


@pytest.mark.parametrize(
    "error",
    [WorkerGroupError("1 worker failed", {0: ZeroDivisionError()}), ControllerError(OSError())],
)
def test_a_defect_is_none(error: Exception) -> None:
    assert _user_error(error) is None  # type: ignore[arg-type]
