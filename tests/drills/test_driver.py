"""The driver of a search, killed at random moments and started again until it ends."""

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from drilling import Drill
from parts.killed_search import NUM_FINALS, NUM_STUDIES, NUM_TRIALS, Round, forget_round, run_round
from parts.recorded_trials import find_faults

pytestmark = [
    pytest.mark.drill,
    pytest.mark.cluster,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # MLflow's client
]
KILLS = int(os.environ.get("KRSCALE_DRILL_DRIVER_KILLS", "50"))
"""Kills of all searches together; fewer for a first look."""
MOST_KILLS = 4
"""Kills of one search."""
SIDES = 2
"""Searches at a time, each in a storage of its own: half the time of a start is waiting."""
FROM_NOTHING = 4
"""Number of searches that share a storage; the first of them makes data, teacher and store."""


def faults_of(run: Path, found: Round) -> list[str]:
    """What was lost, doubled, changed or left running; nothing when all is well."""
    if found.exit_code != 0:
        return [f"the last start ended with {found.exit_code}, see {run}-{len(found.kills)}.log"]
    changed = [f"{key} was changed after it had ended" for key in found.changed]
    return changed + find_faults(run, {False: NUM_TRIALS, True: NUM_FINALS}, NUM_STUDIES)


def phase(num_ended: int) -> str:
    """Name the phase of a search of which `num_ended` trials have ended."""
    if num_ended == 0:
        return "while data, teacher and store are made, or before the first trial ends"
    return "during the search" if num_ended < NUM_STUDIES * NUM_TRIALS else "during the finals"


def next_round(storage: Path, number: int, left: int) -> tuple[Round, list[str]]:
    """Run one search to its end with at most `left` kills; return it, and its faults."""
    empty = not storage.exists()
    storage.mkdir(exist_ok=True)
    name, kills = f"drill-{number}", min(MOST_KILLS, left)
    found = run_round(storage, name, random.Random(number), kills, early=empty)
    faults = [f"search {number}: {fault}" for fault in faults_of(storage / name, found)]
    if not faults:
        forget_round(storage, name)
    return found, faults


def test_a_killed_driver_loses_and_doubles_nothing(drill: Drill, tmp_path: Path) -> None:
    planned = NUM_STUDIES * (NUM_TRIALS + NUM_FINALS)
    drill.must_hold(f"exactly {planned} trials in every search, those that had ended unchanged")
    drill.must_hold("nothing RUNNING and nothing doubled, in Optuna and in MLflow")
    rounds: list[Round] = []
    faults: list[str] = []

    def go_on(side: int) -> None:
        """Start every fourth search on an empty storage, so that kills hit data and teacher."""
        for turn in range(KILLS):
            left = KILLS - sum(len(each.kills) for each in rounds)
            if left <= 0 or faults:
                return
            storage = tmp_path / f"{side}-{turn // FROM_NOTHING}"
            found, wrong = next_round(storage, SIDES * turn + side, left)
            rounds.append(found)
            faults.extend(wrong)

    with ThreadPoolExecutor(SIDES) as sides:
        list(sides.map(go_on, range(SIDES)))
    for _, num_ended in (kill for each in rounds for kill in each.kills):
        drill.injected(f"SIGKILL to the driver {phase(num_ended)}")
    assert faults == []
    assert sum(len(each.kills) for each in rounds) >= KILLS
    drill.held(f"{planned} trials in each of {len(rounds)} searches, what had ended unchanged")
    drill.held("nothing RUNNING and nothing doubled, in Optuna and in MLflow")
