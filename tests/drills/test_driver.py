"""The driver of a search, killed at random moments and started again until it ends."""

import os
import random
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
ROUNDS = int(os.environ.get("KRSCALE_DRILL_ROUNDS", "16"))
"""Searches, each killed up to three times; fewer for a first look."""
FROM_NOTHING = 4
"""Every so-manieth search starts on an empty storage, so that data, teacher and store are hit."""


def faults_of(run: Path, found: Round) -> list[str]:
    """What was lost, doubled, changed or left running; nothing when all is well."""
    if found.exit_code != 0:
        return [f"the last start ended with {found.exit_code}, see {run}-{len(found.kills)}.log"]
    changed = [f"{key} was changed after it had ended" for key in found.changed]
    return changed + find_faults(run, {False: NUM_TRIALS, True: NUM_FINALS}, NUM_STUDIES)


def phase(num_ended: int) -> str:
    """Where a search is of which so many trials have ended."""
    if num_ended == 0:
        return "while data, teacher and store are made, or before the first trial ends"
    return "during the search" if num_ended < NUM_STUDIES * NUM_TRIALS else "during the finals"


def test_a_killed_driver_loses_and_doubles_nothing(drill: Drill, tmp_path: Path) -> None:
    planned = NUM_STUDIES * (NUM_TRIALS + NUM_FINALS)
    drill.must_hold(f"exactly {planned} trials in every search, those that had ended unchanged")
    drill.must_hold("nothing RUNNING and nothing doubled, in Optuna and in MLflow")
    faults: list[str] = []
    for number in range(ROUNDS):
        storage = tmp_path / str(number // FROM_NOTHING)
        empty = not storage.exists()
        storage.mkdir(exist_ok=True)
        name = f"drill-{number}"
        found = run_round(storage, name, random.Random(number), 3, early=empty)
        for _, num_ended in found.kills:
            drill.injected(f"SIGKILL to the driver {phase(num_ended)}")
        faults += [f"search {number}: {fault}" for fault in faults_of(storage / name, found)]
        if not faults:
            forget_round(storage, name)
    assert faults == []
    drill.held(f"{planned} trials in each of {ROUNDS} searches, those that had ended unchanged")
    drill.held("nothing RUNNING and nothing doubled, in Optuna and in MLflow")
