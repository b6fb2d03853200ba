"""A driver that ends between a worker's checkpoint and its own record of the epochs in it."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from drill_searches import SMALL, trials_of
from drilling import Drill
from running import ROOT, environment

from krscale.search.studies.retries import was_interrupted

pytestmark = [pytest.mark.drill, pytest.mark.cluster, pytest.mark.timeout(600)]

DRIVER = """
import os, sys
from krscale.cli.app import main
from krscale.search.on_ray import run

def end(searcher, trial_id, result):
    if "end" in sys.argv[1]:
        os._exit(9)
    return heard(searcher, trial_id, result)

heard, run.LadderSearcher.on_report = run.LadderSearcher.on_report, end
sys.exit(main(["tune", "--quiet", *sys.argv[2:]]))
"""


def drive(word: str, settings: tuple[str, ...]) -> int:
    arguments = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-c", DRIVER, word, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode


def test_every_epoch_is_recorded_once(drill: Drill, tmp_path: Path) -> None:
    drill.must_hold("every epoch of every trial, also of the one cut short, is in the spool once")
    settings = (
        *SMALL, "tracking.enabled=true", "search.sampler=random", "cluster.num_cpus=1",
        f"storage_path={tmp_path}", "name=ended", "train.num_epochs=12", "search.trials_per_size=1",
    )  # fmt: skip
    assert drive("end", settings) == 9
    drill.injected("os._exit of the driver, after a checkpoint and before its epochs are recorded")
    assert drive("go on", settings) == 0
    run = tmp_path / "ended"
    lines = (run / "tracking" / "spool.jsonl").read_text().splitlines()
    logs = [event for event in map(json.loads, lines) if event["op"] == "log"]
    epochs = Counter(
        (event["key"], event["content"]["step"])
        for event in logs
        if "val/accuracy" in event["content"]["metrics"]
    )
    assert set(epochs.values()) == {1}
    tuned, final = trials_of(run)["plain@1/4"], trials_of(run)["plain@1/4 final"]
    (cut_short,) = [trial for trial in tuned if was_interrupted(trial)]
    assert len(tuned) == 2
    assert len(final) == 1
    recorded = [step for key, step in epochs if key == f"plain/1-4/trial-{cut_short.number}"]
    assert recorded, "a first epoch is always kept; a second one may be too soon after it"
    assert recorded == list(range(1, len(recorded) + 1))
    assert list(cut_short.intermediate_values) == recorded
    drill.held(f"{len(epochs)} epochs, {len(recorded)} of them of the trial that was cut short")
