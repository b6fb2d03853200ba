"""Clocks, ratios of things measured in turns, and the machine and commit of a result."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]

Clock = Callable[[], float]


def clock_for(device: torch.device) -> tuple[Clock, str]:
    """Return the clock for work in this process, and its description.

    On the CPU, seconds of CPU time: with one thread they are the seconds of an idle machine, and
    they stay right when other programs share its cores.
    """
    if device.type == "cuda":

        def synchronised() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return synchronised, "wall seconds"
    return time.process_time, f"CPU seconds of the process, {torch.get_num_threads()} thread(s)"


def interleave(
    work: Mapping[str, Callable[[], object]], num_rounds: int, clock: Clock
) -> dict[str, list[float]]:
    """Time every piece of work once per round, after one round that does not count.

    They take turns, so that a temporary slowdown of the machine affects all of them. The order
    changes every round, so that none always follows the same one, or coincides with a periodic
    disturbance.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    names, generator = list(work), torch.Generator().manual_seed(0)
    for number in range(num_rounds + 1):
        for place in torch.randperm(len(names), generator=generator).tolist():
            name = names[place]
            started = clock()
            work[name]()
            if number > 0:
                seconds[name].append(clock() - started)
    return seconds


def ratio(seconds: Mapping[str, list[float]], over: str, under: str) -> float:
    """Return the median over rounds of the time of `over` divided by that of `under`."""
    return round(statistics.median(_ratios(seconds, over, under)), 3)


def ratio_interval(
    seconds: Mapping[str, list[float]], over: str, under: str, draws: int = 2000
) -> list[float]:
    """Return the 95 % interval of `ratio`, by drawing as many rounds with replacement."""
    ratios = torch.tensor(_ratios(seconds, over, under), dtype=torch.float64)
    chosen = torch.randint(
        len(ratios), (draws, len(ratios)), generator=torch.Generator().manual_seed(0)
    )
    medians = ratios[chosen].quantile(0.5, dim=1)
    return [round(float(medians.quantile(share)), 3) for share in (0.025, 0.975)]


def _ratios(seconds: Mapping[str, list[float]], over: str, under: str) -> list[float]:
    return [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]


def machine(device: torch.device) -> str:
    """Describe the machine in one line."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    parts = [f"{os.cpu_count()} x {processor}", f"torch {torch.__version__}"]
    if device.type == "cuda":
        parts.insert(0, torch.cuda.get_device_name(device))
    return ", ".join(parts)


def commit() -> str:
    """Return the commit that the numbers belong to; marked if the code differs from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    code = ("krscale", "benchmarks", ":!benchmarks/results")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    return git("rev-parse", "HEAD") + ("+changes" if changed else "")
