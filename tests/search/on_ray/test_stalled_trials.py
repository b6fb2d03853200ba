"""Ending trials that hang, with a fake of Tune."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from krscale import stalls
from krscale.search.on_ray import stalled_trials
from krscale.search.on_ray.stalled_trials import StalledTrials
from krscale.search.studies.checkpoints import sign_path
from krscale.search.studies.signs import Signs


@dataclass(frozen=True)
class TuneTrial:
    trial_id: str


def controller(**actors: str | None) -> Any:
    """Return the parts of Tune's controller that are read: one trial per name, with its actor."""
    live = {f"tracked {name}": (actor, None) for name, actor in actors.items() if actor}
    return SimpleNamespace(
        _actor_manager=SimpleNamespace(_live_actors_to_ray_actors_resources=live),
        _trial_to_actor={TuneTrial(name): f"tracked {name}" for name in actors},
    )


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(stalled_trials.ray, "kill", found.append)
    return found


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StalledTrials:
    """Three trials: one has a worker, one a worker that is starting, and one waits."""
    config = SimpleNamespace(stall_seconds=5.0, max_wall_seconds=0.0)
    ladder: Any = SimpleNamespace(run_path=tmp_path, config=config)
    running = {
        name: SimpleNamespace(name=f"plain/1-4/{name}", num_epochs=0)
        for name in ("steps", "starts", "waits")
    }
    found = StalledTrials(ladder, cast(Any, running.items))
    found.controller = controller(steps="actor 1", starts="actor 2", waits=None)
    monkeypatch.setattr(stalled_trials, "LOOK_SECONDS", 0.0)
    # Start at 0, where the sums are exact. From the machine's clock, rounding may add a look.
    found.watch._looked_at = 0.0
    found.watch.clock = lambda: found.watch._looked_at + stalls.LONGEST_LOOK
    Signs(sign_path(tmp_path, "plain/1-4/steps"))
    return found


def test_only_a_trial_that_has_begun_and_stays_where_it_is_is_ended(
    found: StalledTrials, killed: list[Any]
) -> None:
    for _ in range(3):
        found.on_step_begin(0, [])
    assert killed == ["actor 1"], "once"
    assert list(found.ended) == ["steps"]
    assert found.ended["steps"].startswith("it made no progress for 5 s and was ended")


def test_a_worker_that_never_comes_up_is_ended_at_last(
    found: StalledTrials, killed: list[Any]
) -> None:
    for _ in range(int(stalls.START_SECONDS / stalls.LONGEST_LOOK) + 1):
        found.on_step_begin(0, [])
    assert killed == ["actor 1", "actor 2"], "what waits for a worker waits on"
