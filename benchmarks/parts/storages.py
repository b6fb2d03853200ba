"""Run a search as a process, and measure its wall seconds and the CPU seconds of all processes."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from parts.measuring import ROOT, ratio

BOUND = 1.1
"""Goal for the wall seconds of a search on S3 over those on a folder."""
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


@dataclass(frozen=True)
class Costs:
    """The costs of a search.

    Attributes:
        seconds: Wall seconds.
        cpu_seconds: CPU seconds of all its processes together.
        server_seconds: CPU seconds of this process, which runs the S3 server.
    """

    seconds: float
    cpu_seconds: float
    server_seconds: float


def run_search(settings: Sequence[str], variables: Mapping[str, str]) -> Costs:
    """Run the search of `make run` with its own Ray, in a separate process.

    Raises:
        RuntimeError: If it fails.
    """
    command = [sys.executable, "-m", "krscale.tune", "--quiet", "--set", "cluster.address=local"]
    command += [part for setting in settings for part in ("--set", setting)]
    return measured(command, variables)


def measured(command: Sequence[str], variables: Mapping[str, str]) -> Costs:
    """Run a command, and wait for it and for all processes that it leaves.

    Those become this process's children (Linux), so that their seconds are known when they end.

    Raises:
        RuntimeError: If it fails.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    own, started = time.process_time(), time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, **variables}
    )
    cpu_seconds, seconds = 0.0, 0.0
    while True:
        try:
            pid, status, usage = os.wait4(-1, 0)
        except ChildProcessError:
            break
        cpu_seconds += usage.ru_utime + usage.ru_stime
        if pid == process.pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {' '.join(command)}")
    return Costs(round(seconds, 2), round(cpu_seconds, 2), round(time.process_time() - own, 2))


def compared(costs: Mapping[str, Sequence[Costs]]) -> dict[str, Any]:
    """Return the costs of searches in turns, and those on S3 over those on a folder."""
    wall = {name: [each.seconds for each in found] for name, found in costs.items()}
    cpu = {name: [each.cpu_seconds for each in found] for name, found in costs.items()}
    return {
        "s3_over_folder": ratio(wall, "s3", "folder"),
        "s3_over_folder_cpu": ratio(cpu, "s3", "folder"),
        "costs": {name: [asdict(each) for each in found] for name, found in costs.items()},
    }


def storage_table(result: Mapping[str, Any]) -> str:
    """Return the section of the page."""
    settings = ", ".join(f"`{setting}`" for setting in result["settings"])
    small = f", made small by {settings}" if settings else ""
    pairs = list(zip(result["costs"]["folder"], result["costs"]["s3"], strict=True))
    walls = [s3["seconds"] / folder["seconds"] for folder, s3 in pairs]
    cpus = [s3["cpu_seconds"] / folder["cpu_seconds"] for folder, s3 in pairs]
    server = max(s3["server_seconds"] for _, s3 in pairs)
    before, after = result["load_before_and_after"]
    lines = [
        f"The search of `make run`{small}: `{result['command']}` at `{result['commit'][:12]}` on "
        f"{result['machine']}, load {before} and {after}. {len(pairs)} rounds in turns, each with "
        f"an empty storage and cache. The server is moto on loopback, which takes up to "
        f"{server:.1f} s of the same processor.",
        "",
        "| ratio | median | of the rounds | goal |",
        "|---|---|---|---|",
        f"| search on S3 / on a folder, wall time | {result['s3_over_folder']:g} "
        f"| {_range(walls)} | <= {BOUND:g} |",
        f"| the same, processor time of all its processes | {result['s3_over_folder_cpu']:g} "
        f"| {_range(cpus)} | |",
    ]
    return "\n".join(lines)


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"
