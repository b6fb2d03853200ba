"""Kill a search's driver at random moments, start it again, and look for what was lost or doubled.

Every round is a search of its own: its driver gets SIGKILL up to `--kills` times, then runs to its
end. Checked: the exact number of trials of every study, nothing left running in Optuna or MLflow,
nothing doubled in either, and whatever had ended before a kill is afterwards what it was.

    python benchmarks/drill.py [--rounds 20] [--seed 0]

Writes `benchmarks/results/drill.json` and its section of `docs/benchmarks.md`; exit code 1 when a
round found a fault.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from parts.document import write_section
from parts.killed_search import (
    NUM_FINALS,
    NUM_STUDIES,
    NUM_TRIALS,
    Round,
    forget_round,
    run_round,
)
from parts.measuring import ROOT, commit, machine
from parts.recorded_trials import find_faults, recorded_trials

from krscale.files import write_json

RESULT = ROOT / "benchmarks" / "results" / "drill.json"


def main() -> int:
    """Run rounds until there are enough of them or the time is up; tell each one's verdict."""
    arguments = _arguments()
    storage: Path = arguments.storage.resolve()
    storage.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    began = time.perf_counter()
    rounds: list[dict[str, Any]] = []
    for number in range(arguments.rounds):
        if time.perf_counter() - began > 60 * arguments.minutes:
            print(f"time is up after {number} rounds", flush=True)
            break
        rounds.append(_round(storage, arguments.seed + number, arguments.kills))
        write_json(RESULT, _result(arguments, rounds))
    result = _result(arguments, rounds)
    write_section("drill", "Killed and resumed", _text(result))
    print(_text(result))
    return 1 if result["num_faulty"] else 0


def _round(storage: Path, seed: int, num_kills: int) -> dict[str, Any]:
    name = f"drill-{os.getpid()}-{seed}"
    found = run_round(storage, name, random.Random(seed), num_kills)  # noqa: S311
    faults = _faults(storage / name, found)
    trials = recorded_trials(storage / name)
    entry = {
        "seed": seed,
        "kills": [{"after_s": after, "ended_trials": ended} for after, ended in found.kills],
        "num_trials": len(trials),
        "num_interrupted": sum(t.interrupted for t in trials.values()),
        "seconds": round(found.seconds, 1),
        "faults": faults,
    }
    verdict = "; ".join(faults) if faults else "nothing lost, nothing doubled"
    print(f"seed {seed}: killed {found.kills}, {len(trials)} trials: {verdict}", flush=True)
    if not faults:
        forget_round(storage, name)
    return entry


def _faults(run: Path, found: Round) -> list[str]:
    if found.exit_code != 0:
        return [f"the last start ended with {found.exit_code}, see {run}-{len(found.kills)}.log"]
    changed = [f"{key} was changed after it had ended" for key in found.changed]
    return changed + find_faults(run, {False: NUM_TRIALS, True: NUM_FINALS}, NUM_STUDIES)


def _result(arguments: argparse.Namespace, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "command": shlex.join(["python", "benchmarks/drill.py", *sys.argv[1:]]),
        "commit": commit(),
        "machine": machine(torch.device("cpu")),
        "seed": arguments.seed,
        "num_rounds": len(rounds),
        "num_kills": sum(len(entry["kills"]) for entry in rounds),
        "num_interrupted": sum(entry["num_interrupted"] for entry in rounds),
        "num_faulty": sum(bool(entry["faults"]) for entry in rounds),
        "rounds": rounds,
    }


def _text(result: dict[str, Any]) -> str:
    planned = NUM_STUDIES * (NUM_TRIALS + NUM_FINALS)
    return (
        f"`{result['command']}` at `{result['commit'][:12]}` on {result['machine']}.\n\n"
        f"{result['num_rounds']} searches of {planned} trials, one after the other, their drivers "
        f"killed {result['num_kills']} times in all at random moments, which interrupted "
        f"{result['num_interrupted']} trials: {result['num_rounds'] - result['num_faulty']} "
        f"searches without a lost, doubled or changed trial, {result['num_faulty']} with a fault "
        f"(goal: 20 and 0)."
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kills", type=int, default=2, help="in one round, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; round n adds n")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no round after so long")
    parser.add_argument("--storage", type=Path, default=ROOT / "runs" / "drill")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
