"""(e) Resident memory of 1 and of 8 trials that share data and store through mapped pages.

Run as a script, this file is one trial: it opens data and store, reads every row of both through
the loader, prints that it is ready, and waits until its memory has been measured.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from krscale.data.loader import Loader
from krscale.store import KnowledgeStore
from krscale.store.layout import Layout
from krscale.store.manifest import StorePlan, write_manifest
from krscale.store.rows import Rows
from krscale.store.shard import whole_shards, write_shard
from parts.loading import BATCH_SIZE, VIEWS, images_at, write_images

LAYOUT = Layout(num_taps=6, num_classes=100, top_k=100, temperature=4.0)
SIZES = (20_000, 80_000)
COUNTS = (1, 8)


def measure_memory(storage: Path) -> dict[str, Any]:
    """Return MB of memory of several trials at once, for two sizes of data and store.

    `rss_mb` is the memory of all trials together at the larger size, with shared pages counted once
    (the sum of their proportional set sizes). `private_mb_per_trial` is the private memory of each
    of 8 trials.
    """
    together: dict[str, float] = {}
    private: dict[str, float] = {}
    for size in SIZES:
        folder = storage / f"memory-{size}"
        megabytes = _write(folder, size)
        for count in COUNTS:
            proportional, alone = _hold(folder, size, count)
            together[str(count)] = round(proportional, 1)
        private[f"{megabytes:.0f} MB of data and store"] = round(alone, 1)
        print(f"  {size} samples: {together}, {private}", flush=True)
    return {"rss_mb": together, "private_mb_per_trial": private}


def _write(folder: Path, num_samples: int) -> float:
    """Write images and a store of random content; return their size in MB."""
    write_images(folder / "data", num_samples)
    plan = StorePlan({}, VIEWS.num_views, num_samples, 8192, LAYOUT, (0.0,) * 6, 1)
    path = folder / "store"
    for shard in plan.shards:
        start, stop = plan.range_of(shard)
        rows = Rows(torch.rand(stop - start, 600).half(), None)
        pixels, lost = torch.zeros(stop - start, dtype=torch.int64), torch.zeros(6).double()
        write_shard(path, shard, LAYOUT, rows, pixels, lost)
    write_manifest(path, plan, whole_shards(path, plan.shards))
    files = [*folder.glob("data/*.arrow"), *path.glob("*/*.arrow")]
    return sum(file.stat().st_size for file in files) / 1e6


def _hold(folder: Path, size: int, count: int) -> tuple[float, float]:
    """Start trials, measure them once all are ready; return total MB, and mean private MB."""
    root = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join([root, str(Path(root).parent)])
    trials = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(count)
    ]
    try:
        for trial in trials:
            if trial.stdout is None or trial.stdout.readline() != "ready\n":
                raise RuntimeError("a trial ended before it was ready")
        memory = [_memory(trial.pid) for trial in trials]
    finally:
        for trial in trials:
            trial.communicate("done\n")
    together = sum(held["Pss"] for held in memory)
    alone = sum(held["Private_Clean"] + held["Private_Dirty"] for held in memory)
    return together, alone / count


def _memory(pid: int) -> dict[str, float]:
    """Return the kernel's sums over a process's mappings, in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines}


def _trial(folder: Path, size: int) -> None:
    store = KnowledgeStore.open(folder / "store")
    loader = Loader(
        images_at(folder / "data", size),
        VIEWS,
        global_batch_size=BATCH_SIZE,
        seed=os.getpid(),
        device=torch.device("cpu"),
        store=store,
    )
    for epoch in range(VIEWS.num_views):
        for _ in loader.epoch(epoch):
            pass
    print("ready", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    _trial(Path(sys.argv[1]), int(sys.argv[2]))
