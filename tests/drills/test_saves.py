"""Processes killed while they write a search's files: nothing half-written is ever counted."""

import multiprocessing
import os
import random
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from drilling import Drill
from running import PATHS
from save_and_die import EXACT, STUDY, save_until_killed

from krscale.digests import check_file
from krscale.files import read_json
from krscale.search.studies.journal import Journal
from krscale.store.shard import ShardId, read_shard, whole_shards
from krscale.tracking.spool import Spool
from krscale.training.checkpoint import load_checkpoint, read_metadata, read_weights

KILLS = int(os.environ.get("KRSCALE_DRILL_KILLS", "200"))


@dataclass(frozen=True)
class Kept:
    """The rounds that a killed process has left in each file, all of them read whole.

    Attributes:
        replaced: Round of each file that every round replaces.
        kept: Rounds in each file that every round adds to: shards, journal, spool.
    """

    replaced: dict[str, int]
    kept: dict[str, list[int]]

    @property
    def last(self) -> int:
        """The last round that has left anything."""
        return max(*self.replaced.values(), *map(max, self.kept.values()))


def kill_while_saving(folder: Path, start: int, seconds: float) -> list[int]:
    """Start the writer, kill it after `seconds`; return the rounds that it acknowledged."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["save_and_die"])
    mine, its = context.Pipe(duplex=False)
    process = context.Process(target=save_until_killed, args=(folder, start, its), daemon=True)
    process.start()
    its.close()
    mine.poll(60)  # it has begun
    process.join(seconds)
    process.kill()
    process.join()
    done: list[int] = []
    with suppress(EOFError):
        while mine.poll(0):
            done.append(mine.recv())
    return done


def read_all(folder: Path, up_to: int) -> Kept:
    """Read everything as krscale does at its next start; each reader refuses what is not whole."""
    state = load_checkpoint(folder / "checkpoint")
    assert set(state["values"].tolist()) == {float(state["round"])}
    weights = folder / "student.safetensors"
    check_file(weights)
    of_weights = read_metadata(weights)["round"]
    assert set(read_weights(weights)["weight"].tolist()) == {float(of_weights)}
    curve = read_json(folder / "curve.json")
    shards = whole_shards(folder / "store", [ShardId(0, number) for number in range(up_to)])
    for shard, kept in shards.items():
        values = read_shard(folder / "store" / kept.file).values
        assert set(values.ravel()) == {shard.number % EXACT}
    storage = Journal(folder / "journal.log").storage
    study = optuna.load_study(storage=storage, study_name=STUDY)
    told = [t.user_attrs["round"] for t in study.trials if t.state.is_finished()]
    spool = Spool(folder / "spool.jsonl")
    steps = [event.content["step"] for event, _ in spool.read(0) if event.op == "log"]
    spool.close()
    return Kept(
        {"checkpoint": state["round"], "weights": of_weights, "curve": curve["round"]},
        {"shards": [shard.number for shard in shards], "journal": told, "spool": steps},
    )


def faults(found: Kept, acknowledged: list[int]) -> list[str]:
    """What was acknowledged and is missing, or is there twice."""
    lost = [f"{n}: {last}" for n, last in found.replaced.items() if last < acknowledged[-1]]
    for name, rounds in found.kept.items():
        lost += [f"{name}: {number} is gone" for number in set(acknowledged) - set(rounds)]
        if len(set(rounds)) < len(rounds):
            lost.append(f"{name}: some twice: {rounds}")
    return lost


@pytest.mark.drill
@pytest.mark.timeout(1800)
def test_a_process_killed_while_it_saves(
    drill: Drill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", PATHS)  # of the fork server, which imports only once
    drill.must_hold("checkpoint, weights, curve.json, shards, journal and spool are read whole")
    drill.must_hold("what was acknowledged is there, and nothing of it twice")
    draws = random.Random(0)
    acknowledged = kill_while_saving(tmp_path, 0, 1.0)
    assert acknowledged, "the writer wrote nothing"
    last = acknowledged[-1]
    for _ in range(KILLS):
        acknowledged += kill_while_saving(tmp_path, last + 1, draws.uniform(0.0, 0.1))
        drill.injected("SIGKILL to a process that saves")
        found = read_all(tmp_path, acknowledged[-1] + 100)
        assert faults(found, acknowledged) == []
        last = found.last
    drill.held(f"all were read whole after each of {KILLS} kills")
    drill.held(f"all of {len(acknowledged)} rounds were there, each once")
