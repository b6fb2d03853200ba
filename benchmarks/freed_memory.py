"""Measure the effect of malloc's settings on time and memory of a training step on CPUs.

    python benchmarks/freed_memory.py [--widths 6 16 64] [--rounds 3]

Each figure is measured in a separate process with one thread, since malloc reads its settings when
a process starts; the settings are measured in turns. Writes `benchmarks/results/freed_memory.json`
and its section of `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from parts.document import write_section
from parts.measuring import ROOT, commit, machine, ratio
from parts.worker_steps import TASK, prepared, seconds_of_steps

from krscale.allocator import VARIABLES
from krscale.files import write_json

RESULT = ROOT / "benchmarks" / "results" / "freed_memory.json"
WAYS: dict[str, dict[str, str]] = {
    # A setting without effect; since it is set, krscale does not change malloc.
    "as by default": {"MALLOC_CHECK_": "0"},
    "kept": VARIABLES,
    "THP_MEM_ALLOC_ENABLE=1": {"MALLOC_CHECK_": "0", "THP_MEM_ALLOC_ENABLE": "1"},
}
CHANGES = (*TASK, "data.glyphs.num_train=512")
"""One step per epoch, of 512 images of 32 x 32."""
NUM_STEPS = 3


def main(words: Sequence[str] | None = None) -> None:
    """Measure every width in every way, and write."""
    arguments = _arguments(words)
    if arguments.measure:
        print(json.dumps(_measured(arguments.storage, arguments.widths[0])))
        return
    load = os.getloadavg()[0]
    prepared(arguments.storage, CHANGES)
    rows = []
    for width in arguments.widths:
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(arguments.rounds):
            for way in WAYS:
                found[way].append(_in_a_process(way, arguments.storage, width))
        rows.append({"width": width, "ways": _summed_up(found)})
        print(rows[-1], flush=True)
    result = {
        "machine": machine(torch.device("cpu")),
        "system": " ".join(os.uname()[i] for i in (0, 2)),
        "commit": commit(),
        "command": shlex.join(["python", "benchmarks/freed_memory.py", *(words or sys.argv[1:])]),
        "load_before_and_after": [round(load, 1), round(os.getloadavg()[0], 1)],
        "rows": rows,
    }
    write_json(RESULT, result)
    write_section("freed memory", "Memory that a step frees", freed_memory_table(result))


def freed_memory_table(result: Mapping[str, Any]) -> str:
    """Return the section of the page."""
    first, last = result["load_before_and_after"]
    lines = [
        f"`{result['command']}` at `{result['commit'][:12]}` on {result['machine']}, "
        f"{result['system']}, load {first} and {last}: plain steps of 512 images of 32 x 32 by one "
        "thread. *kept* is what krscale's commands set (`krscale/allocator.py`).",
        "",
        "| student, malloc | s a step | over the default | the system's s | most memory, MB |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        for way, found in row["ways"].items():
            lines.append(
                f"| width {row['width']}, {way} | {found['seconds']} | {found['ratio']} "
                f"| {found['system_seconds']} | {found['megabytes']:,} |"
            )
    return "\n".join(lines)


def _measured(storage: Path, width: int) -> dict[str, float]:
    """Return the seconds of a step, its mean system time in seconds, and the peak memory in MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_stime
    seconds = seconds_of_steps(str(storage), CHANGES, width, NUM_STEPS)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": statistics.median(seconds),
        "system_seconds": (used.ru_stime - before) / (NUM_STEPS + 1),
        "megabytes": used.ru_maxrss / 1024,
    }


def _in_a_process(way: str, storage: Path, width: int) -> dict[str, float]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("MALLOC_", "THP_", "GLIBC"))}
    paths = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])
    command = [sys.executable, __file__, "--measure", "--widths", str(width)]
    done = subprocess.run(
        [*command, "--storage", str(storage)], env={**kept, **WAYS[way], "PYTHONPATH": paths},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _summed_up(found: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Return medians of the rounds, and each way's time relative to the default's."""
    seconds = {way: [one["seconds"] for one in each] for way, each in found.items()}
    default = next(iter(WAYS))
    return {
        way: {
            "seconds": round(statistics.median(seconds[way]), 3),
            "ratio": ratio(seconds, way, default),
            "system_seconds": round(statistics.median(o["system_seconds"] for o in each), 3),
            "megabytes": round(max(one["megabytes"] for one in each)),
        }
        for way, each in found.items()
    }


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[6, 16, 64], help="of students")
    parser.add_argument("--rounds", type=int, default=3, help="in turns")
    parser.add_argument("--storage", type=Path, default=ROOT / "runs" / "benchmarks")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
