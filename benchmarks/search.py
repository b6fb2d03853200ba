"""Measure the search: its gain over the stock recipes, its own overhead, and its samplers.

    python benchmarks/search.py [--parts contenders,efficiency,noop,sampling,transfer,simulation]

`make bench-search` runs the default parts. `record` trains the students whose learning curves
`sampling`, `transfer` and `simulation` replay; the curves are kept in
`benchmarks/results/learning_curves.json`. Writes `benchmarks/results/search.json` and its section
of `docs/benchmarks.md`; parts left out keep their last result.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from parts.document import write_section
from parts.measuring import ROOT, commit, machine
from parts.overhead import measure_contenders, measure_efficiency, measure_noop
from parts.recording import read_recorded, record_curves
from parts.sampling import measure_sampling, measure_transfer
from parts.search_table import search_table
from parts.simulation import simulate
from parts.surrogate import Surrogate

from krscale.files import write_json

RESULT = ROOT / "benchmarks" / "results" / "search.json"
RAY_SECONDS_PER_TRIAL = 0.05
"""Seconds of Tune's controller, used until the no-op trials have been measured."""


def main() -> None:
    """Run the chosen parts and write what they found."""
    arguments = _arguments()
    torch.set_num_threads(1)
    arguments.storage.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    result["machine"] = machine(torch.device("cpu"))
    for name, measure in _parts(arguments, result).items():
        if name in arguments.parts:
            started, load = time.perf_counter(), os.getloadavg()[0]
            print(f"{name}:", flush=True)
            result |= measure()
            result["command"] = shlex.join(["python", "benchmarks/search.py", *sys.argv[1:]])
            result["commit"] = commit()
            seconds = round(time.perf_counter() - started)
            # The load before a part shows other programs; at its end it includes the part's own.
            loads = [round(load, 1), round(os.getloadavg()[0], 1)]
            result.setdefault("parts", {})[name] = {
                "seconds": seconds, "load_before_and_after": loads,
                "commit": result["commit"], "command": result["command"],
            }  # fmt: skip
            write_json(RESULT, result)
            print(f"  ({seconds} s, load {loads})", flush=True)
    table = search_table(result)
    write_section("search", "The search", table)
    print(table)


def _parts(
    arguments: argparse.Namespace, result: dict[str, Any]
) -> dict[str, Callable[[], dict[str, Any]]]:
    def record() -> dict[str, Any]:
        record_curves(arguments.storage, arguments.points, arguments.minutes)
        return {}

    def contenders() -> dict[str, Any]:
        return measure_contenders(arguments.storage, arguments.trials)

    def efficiency() -> dict[str, Any]:
        return measure_efficiency(arguments.storage)

    def noop() -> dict[str, Any]:
        return measure_noop(arguments.storage, arguments.noop_trials)

    def sampling() -> dict[str, Any]:
        recorded = read_recorded()
        found = measure_sampling(Surrogate(recorded), range(arguments.seeds))
        num_points = len(next(iter(recorded["sizes"].values())))
        return found | {
            "surrogate": {
                "points_per_size": num_points,
                "rank_correlation": Surrogate(recorded).agreement(recorded),
                "recorded_at": recorded["commit"],
            }
        }

    def transfer() -> dict[str, Any]:
        return measure_transfer(Surrogate(read_recorded()), range(12 * arguments.seeds))

    def simulation() -> dict[str, Any]:
        rate = result.get("noop", {}).get("ray_seconds_per_trial", RAY_SECONDS_PER_TRIAL)
        surrogate = Surrogate(read_recorded())
        return {
            "simulated": simulate(
                surrogate, arguments.simulated_trials, arguments.simulated_workers,
                arguments.simulated_seconds, rate,
            )
        }  # fmt: skip

    parts = (record, contenders, efficiency, noop, sampling, transfer, simulation)
    return {part.__name__: part for part in parts}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="contenders,efficiency,noop")
    parser.add_argument("--trials", type=int, default=8, help="of each contender")
    parser.add_argument("--noop-trials", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5, help="of the samplers")
    parser.add_argument("--points", type=int, default=120, help="recorded at every size")
    parser.add_argument("--minutes", type=float, default=30, help="for recording")
    parser.add_argument("--simulated-trials", type=int, default=10_000)
    parser.add_argument("--simulated-workers", type=int, default=1_000)
    parser.add_argument("--simulated-seconds", type=float, default=600.0, help="a whole trial's")
    parser.add_argument("--storage", type=Path, default=ROOT / "runs" / "benchmarks")
    arguments = parser.parse_args()
    arguments.parts = arguments.parts.split(",")
    return arguments


if __name__ == "__main__":
    main()
