"""Processes killed while they write what a search keeps: nothing half-written is ever counted."""

import multiprocessing
import random
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from drilling import Drill
from save_and_die import STUDY, save_until_killed

from krscale.digests import check_file
from krscale.files import read_json
from krscale.search.studies.journal import Journal
from krscale.store.shard import ShardId, read_shard, whole_shards
from krscale.tracking.spool import Spool
from krscale.training.checkpoint import load_checkpoint, read_metadata, read_weights


@dataclass(frozen=True)
class Kept:
    """The round of each thing that a killed process has left, all of them read whole."""

    checkpoint: int
    weights: int
    curve: int
    shard: int
    journal: int
    spool: int


def kill_while_saving(folder: Path, start: int, seconds: float) -> int:
    """Start the writer, kill it after so long; return the last round that it acknowledged."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["save_and_die"])
    mine, its = context.Pipe(duplex=False)
    process = context.Process(target=save_until_killed, args=(folder, start, its), daemon=True)
    process.start()
    its.close()
    last = start - 1
    if start == 0 or mine.poll(60):  # it has begun
        process.join(seconds)
    process.kill()
    process.join()
    with suppress(EOFError):
        while mine.poll(0):
            last = mine.recv()
    return last


def read_all(folder: Path, up_to: int) -> Kept:
    """Read everything as krscale does at its next start; each reader refuses what is not whole."""
    state = load_checkpoint(folder / "checkpoint")
    assert set(state["values"].tolist()) == {float(state["round"])}
    weights = folder / "student.safetensors"
    with suppress(FileNotFoundError):
        check_file(weights)
    found = read_weights(weights)["weight"]
    assert set(found.tolist()) == {float(read_metadata(weights)["round"])}
    curve = read_json(folder / "curve.json")
    shards = whole_shards(folder / "store", [ShardId(0, n) for n in range(up_to + 2)])
    for shard, kept in shards.items():
        assert set(read_shard(folder / "store" / kept.file).values.ravel()) == {shard.number}
    assert [shard.number for shard in sorted(shards)] == list(range(len(shards)))
    study = optuna.load_study(
        storage=Journal(folder / "journal.log").storage, study_name=STUDY, sampler=None
    )
    rounds = [t.user_attrs["round"] for t in study.trials if t.state.is_finished()]
    assert len(set(rounds)) == len(rounds)
    spool = Spool(folder / "spool.jsonl")
    steps = [event.content["step"] for event, _ in spool.read(0) if event.op == "log"]
    spool.close()
    assert steps == sorted(set(steps))
    return Kept(
        state["round"], read_metadata(weights)["round"], curve["round"], max(shards).number,
        max(rounds), steps[-1],
    )  # fmt: skip


@pytest.mark.drill
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [4])
def test_a_process_killed_while_it_saves(kills: int, drill: Drill, tmp_path: Path) -> None:
    drill.must_hold("checkpoint, weights, curve.json, shards, journal and spool are read whole")
    drill.must_hold("what was acknowledged is there, and nothing of it twice")
    draws = random.Random(0)
    acknowledged = kill_while_saving(tmp_path, 0, 10.0)
    assert acknowledged >= 0, "the writer wrote nothing within 10 s"
    for _ in range(kills):
        acknowledged = max(
            acknowledged, kill_while_saving(tmp_path, acknowledged + 1, draws.uniform(0.0, 0.3))
        )
        drill.injected("SIGKILL to a process that saves")
        kept = read_all(tmp_path, acknowledged)
        assert min(vars(kept).values()) >= acknowledged, (kept, acknowledged)
    drill.held(f"all were read whole after each of {kills} kills")
    drill.held(f"all of {acknowledged + 1} rounds were there, each once")
