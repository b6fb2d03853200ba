"""Measure workers and nodes: Ray Train against torchrun, 1 and 2 workers, starts, nodes.

Writes `benchmarks/results/workers.json` and its section of `docs/benchmarks.md`:

    python benchmarks/workers.py [--parts loop,speedup,group_norm,starts,nodes] [--tiny]

For an idle machine with two cores; the load average is recorded with each part.
With `--tiny` it only prints.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from parts.document import write_section
from parts.measuring import ROOT, commit, machine, ratio, ratio_interval
from parts.worker_steps import (
    STEPS_OF_A_TURN,
    TASK,
    by_ray_train,
    by_torchrun,
    in_turns_by_torchrun,
    prepared,
)

from krscale.cluster.connect import connect
from krscale.config import load
from krscale.files import read_json, write_json

RESULT = ROOT / "benchmarks" / "results" / "workers.json"
WORKERS, NODES = 2, (1, 2, 3)
PARTS = ("loop", "speedup", "group_norm", "starts", "nodes")
GROUP_NORM = "student.model=parts.group_norm:group_norm_resnet"
TINY = ("data.glyphs.num_train=64", "data.glyphs.image_size=8", "train.global_batch_size=32")
os.environ.setdefault("RAY_worker_niceness", "0")


def main(words: list[str] | None = None) -> None:
    """Run the chosen parts and write what they found; parts left out keep their last result."""
    arguments = _arguments(words)
    result: dict[str, Any] = read_json(RESULT) if RESULT.exists() and not arguments.tiny else {}
    result["machine"] = machine(torch.device("cpu"))
    command = shlex.join(["python", "benchmarks/workers.py", *(words or sys.argv[1:])])
    for name, measure in _parts(arguments).items():
        if name not in arguments.parts:
            continue
        began, load_before = time.perf_counter(), os.getloadavg()[0]
        found = measure()
        loads = [round(load_before, 1), round(os.getloadavg()[0], 1)]
        seconds = round(time.perf_counter() - began)
        result[name] = found | {
            "command": command, "commit": commit(), "load_before_and_after": loads,
            "seconds": seconds,
        }  # fmt: skip
        print(f"{name}: {found} ({seconds} s, load {loads})", flush=True)
        if not arguments.tiny:
            write_json(RESULT, result)
            write_section("workers", "Workers and nodes", workers_table(result))


def measure_loop(storage: Path, changes: Sequence[str], width: int, rounds: int) -> dict[str, Any]:
    """Return the time of a step of workers started by Ray Train, relative to torchrun's.

    Here two workers leave no core for Ray's own processes; one worker leaves one (`spare_core`),
    which is the usual case on a machine with more cores than workers.
    """
    import ray

    prepared(storage, changes)
    seconds: dict[str, list[float]] = {}
    cluster = load(None, ["cluster.address=local", f"cluster.num_cpus={WORKERS}"]).cluster
    for _ in range(rounds):
        for number, end in ((WORKERS, ""), (1, "_spare_core")):
            asked = (number, str(storage), changes, width, 2)
            connect(cluster)
            try:
                found = statistics.median(by_ray_train(*asked))
            finally:
                ray.shutdown()  # its processes would run while torchrun's are timed
            seconds.setdefault(f"ray_train{end}", []).append(found)
            found = statistics.median(by_torchrun(*asked))
            seconds.setdefault(f"torchrun{end}", []).append(found)
    return {
        **_milliseconds(seconds),
        **_ratio("ray_train_over_torchrun", seconds, "ray_train", "torchrun"),
        **_ratio("spare_core", seconds, "ray_train_spare_core", "torchrun_spare_core"),
        "width": width,
    }


def measure_speedup(
    storage: Path, changes: Sequence[str], width: int, rounds: int
) -> dict[str, Any]:
    """Return how many times as fast as one worker two workers are, each with one thread.

    The result includes what the machine allows: two processes at once, each with a worker's share
    of the batch, that exchange nothing. All are timed in turns of a few steps by the same two
    processes, since the speed of a shared machine changes within a minute.
    """
    prepared(storage, changes)
    seconds = in_turns_by_torchrun(WORKERS, str(storage), changes, width, rounds)
    of_a_step = {
        name: [turn / STEPS_OF_A_TURN for turn in turns] for name, turns in seconds.items()
    }
    return {
        **_milliseconds(of_a_step),
        **_ratio("speedup", seconds, "one", "two"),
        **_ratio("limit", seconds, "one", "apart"),
        **_ratio("share_of_limit", seconds, "apart", "two"),
        "width": width,
    }


def workers_table(result: Mapping[str, Any]) -> str:
    """Return the results beside their goals, and name the parts that were not measured."""
    rows = []
    if loop := result.get("loop"):
        rows += [
            f"| a step of two workers, Ray Train / torchrun (width {loop['width']}) "
            f"| {_shown(loop, 'ray_train_over_torchrun')} | 1.02 |",
            f"| the same with one worker, which leaves a core to Ray's own processes "
            f"| {_shown(loop, 'spare_core')} | 1.02 |",
        ]
    if speedup := result.get("speedup"):
        rows += [
            f"| one worker / two workers, a step of the same batch (width {speedup['width']}) "
            f"| {_shown(speedup, 'speedup')} | 1.85 |",
            f"| the most this machine allows: two processes that exchange nothing "
            f"| {_shown(speedup, 'limit')} | |",
            f"| two workers' speed over the most this machine allows (1.85 of 2 is 0.925) "
            f"| {_shown(speedup, 'share_of_limit')} | |",
        ]
    if group_norm := result.get("group_norm"):
        rows += [
            f"| one worker / two workers with group norm, which needs no exchange within a step "
            f"(width {group_norm['width']}) | {_shown(group_norm, 'speedup')} | 1.85 |",
            f"| the most this machine allows with it | {_shown(group_norm, 'limit')} | |",
            f"| two workers' speed over that | {_shown(group_norm, 'share_of_limit')} | |",
        ]
    if starts := result.get("starts"):
        one, two = (starts["trial_start_s"][number] for number in ("1", "2"))
        rows.append(f"| seconds between two trials of a group of two workers | {two} | 0.5 |")
        rows.append(f"| the same with one worker | {one} | |")
    if nodes := result.get("nodes"):
        rows += [
            f"| trials a second on {number} node(s) over one; trials that sleep for "
            f"{nodes['seconds_of_a_trial']} s | {times} | |"
            for number, times in nodes["over_one_node"].items()
        ]
    missing = [name for name in PARTS if name not in result]
    lines = []
    if rows:
        lines += [f"On {result['machine']}.", "", "| measured | value | goal |", "|---|---|---|"]
        lines += [*rows, ""]
        lines += [
            f"- {name}: `{part['command']}` at `{part['commit'][:12]}`, {part['seconds']} s, load "
            f"{part['load_before_and_after'][0]} and {part['load_before_and_after'][1]}"
            for name, part in result.items()
            if isinstance(part, Mapping) and "load_before_and_after" in part
        ]
    if missing:
        lines += [
            "",
            f"Not measured: {', '.join(missing)}. `python benchmarks/workers.py` measures.",
        ]
    return "\n".join(lines).strip()


def _ratio(name: str, seconds: Mapping[str, list[float]], over: str, under: str) -> dict[str, Any]:
    interval = ratio_interval(seconds, over, under)
    return {name: ratio(seconds, over, under), f"{name}_interval": interval}


def _shown(part: Mapping[str, Any], name: str) -> str:
    between = part.get(f"{name}_interval")  # older results have none
    return f"{part[name]}" if between is None else f"{part[name]} [{between[0]}, {between[1]}]"


def _milliseconds(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    return {f"{n}_ms": [round(1e3 * value, 1) for value in found] for n, found in seconds.items()}


def _parts(arguments: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    storage: Path = arguments.storage
    changes = (*TASK, *TINY) if arguments.tiny else TASK
    width, rounds = (4, 1) if arguments.tiny else (arguments.width, arguments.rounds)
    trials = 3 if arguments.tiny else 12

    def loop() -> dict[str, Any]:
        return measure_loop(storage, changes, width, rounds)

    def speedup() -> dict[str, Any]:
        return measure_speedup(storage, changes, width, rounds)

    def group_norm() -> dict[str, Any]:
        return measure_speedup(storage, (*changes, GROUP_NORM), width, rounds)

    def starts() -> dict[str, Any]:
        from parts.worker_searches import measure_starts

        return measure_starts(storage, trials)

    def nodes() -> dict[str, Any]:
        from parts.worker_searches import measure_nodes

        return measure_nodes(storage, 2 * trials, NODES[:2] if arguments.tiny else NODES)

    return {part.__name__: part for part in (loop, speedup, group_norm, starts, nodes)}


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="in turns")
    parser.add_argument(
        "--width", type=int, default=64, help="of the student whose steps are timed"
    )
    parser.add_argument("--tiny", action="store_true", help="smallest sizes; writes nothing")
    parser.add_argument("--storage", type=Path, default=ROOT / "runs" / "benchmarks")
    arguments = parser.parse_args(words)
    arguments.parts = arguments.parts.split(",")
    return arguments


if __name__ == "__main__":
    main()
