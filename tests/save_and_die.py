"""Writes all that a search saves, repeatedly, until it is killed; the drill of saves starts it.

It sends the number of each round through a pipe once the round is durably on disk.
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

import optuna
import torch
from optuna.trial import TrialState

from krscale.files import write_json
from krscale.search.studies.journal import Journal
from krscale.store.layout import FeatureLayout
from krscale.store.rows import Rows
from krscale.store.shard import ShardId, write_shard
from krscale.tracking.spool import Event, Spool
from krscale.training.checkpoint import save_checkpoint, save_weights

NUM_SHARD_ROWS = 200
EXACT = 2048
"""fp16 represents all whole numbers below it exactly, and a fast machine makes more rounds."""
STUDY = "kr@1/4"


def save_until_killed(folder: Path, start: int, acknowledged: Connection) -> None:
    """Write round after round: checkpoint, weights, curve.json, shard, journal, spool."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal, spool = Journal(folder / "journal.log"), Spool(folder / "spool.jsonl")
    study = optuna.create_study(
        storage=journal.storage, study_name=STUDY, load_if_exists=True, direction="maximize"
    )
    number = start
    while True:
        save_round(folder, number)
        trial = study.ask()
        trial.set_user_attr("round", number)
        study.tell(trial, float(number), state=TrialState.COMPLETE)
        journal.sync()
        spool.append(Event("log", "kr", number, {"metrics": {"a": 1.0}, "step": number}))
        acknowledged.send(number)
        number += 1


def save_round(folder: Path, number: int) -> None:
    """Write the files of one round."""
    values = torch.full((40_000,), float(number))
    save_checkpoint(folder / "checkpoint", {"round": number, "values": values})
    save_weights(folder / "student.safetensors", {"weight": values}, {"round": number})
    write_json(folder / "curve.json", {"round": number, "points": [float(number)] * 2000})
    rows = Rows((values[:NUM_SHARD_ROWS, None] % EXACT).to(torch.float16), None)
    pixels = torch.arange(NUM_SHARD_ROWS)
    layout = FeatureLayout(((1,),))
    error = torch.zeros(1, dtype=torch.float64)
    write_shard(folder / "store", ShardId(0, number), layout, rows, pixels, error)
