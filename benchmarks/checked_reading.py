"""Measure what comparing data and store with their digests costs, at opening and in an epoch.

Writes `benchmarks/results/checked_reading.json`:

    python benchmarks/checked_reading.py [--images 20000] [--repeats 5]

The images are random, of 3x32x32 in 100 classes, as only the time matters. A process compares each
block once. Here its list of compared blocks is cleared before every second epoch, which is the
worst case: the process has read neither the images nor the view of that epoch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts.measuring import ROOT, commit, machine

from krscale import digests
from krscale.config import load, with_values
from krscale.data import open_data
from krscale.digests import CheckedFile, FileDigest, read_digest
from krscale.files import write_json
from krscale.parallel import Workers
from krscale.progress import Progress
from krscale.setup.build import Assets, build_training
from krscale.setup.prepare import Setup, prepare_knowledge
from krscale.setup.sizes import find_size
from krscale.store import KnowledgeStore

RESULT = ROOT / "benchmarks" / "results" / "checked_reading.json"
SETTINGS = (
    "teacher.width=8",
    "teacher.num_epochs=1",
    "teacher.allow_poor=true",
    "views.num_views=1",
    "train.device=cpu",
    "distill.capacity='1/16'",
)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = measure(Path(place), options.images, options.repeats)
    write_json(RESULT, {"commit": commit(), "machine": machine(torch.device("cpu")), **found})
    for name, value in found.items():
        print(f"{name}: {value}")


def measure(place: Path, num_images: int, repeats: int) -> dict[str, Any]:
    """Return seconds and bytes by name."""
    source = place / "images.npz"
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (num_images, 32, 32, 3), dtype=np.uint8)
    np.savez(source, images=images, labels=np.arange(num_images) % 100)
    settings = (*SETTINGS, "data.source=numpy", f"data.path={source}", f"storage_path={place}")
    experiment = load(None, list(settings))
    with Progress(quiet=True, planned={}) as progress:
        setup = Setup.resolve(experiment, progress)
        prepared = prepare_knowledge(setup, progress)
    data, store = Path(prepared.data_path), Path(prepared.store_path)
    opened = [timed(lambda: open_both(data, store)) for _ in range(repeats)]
    compared = [timed(lambda: compare_all(data, store)) for _ in range(repeats)]
    torch.set_num_threads(1)
    assets = Assets.open(prepared)
    width = find_size(setup.networks).width
    trial = with_values(setup.experiment, {"train.num_epochs": 1}, "benchmark")
    epochs: dict[str, list[float]] = {"compared": [], "not": []}
    for number in range(2 * repeats):
        if number % 2:
            digests._compared.clear()
            assets = Assets.open(prepared)
        training = build_training(trial, assets, width, Workers.alone())
        epochs["compared" if number % 2 else "not"].append(timed(training.run_epoch))
    num_bytes = {name: size(path) for name, path in (("data", data), ("store", store))}
    return {
        "bytes": num_bytes,
        "seconds_to_open": statistics.median(opened),
        "seconds_to_compare_all": statistics.median(compared),
        "seconds_of_an_epoch": statistics.median(epochs["not"]),
        "seconds_of_an_epoch_with_comparing": statistics.median(epochs["compared"]),
        "share_of_an_epoch": statistics.median(compared) / statistics.median(epochs["not"]),
    }


def timed(work: Callable[[], object]) -> float:
    """Return the CPU seconds of some work, which do not depend on other programs."""
    started = time.process_time()
    work()
    return time.process_time() - started


def open_both(data: Path, store: Path) -> None:
    """Open the training split and the store, as a worker does."""
    digests._compared.clear()
    open_data(data).split("train", lazily=True)
    KnowledgeStore.open(store)


def compare_all(data: Path, store: Path) -> None:
    """Compare what an epoch reads: the training split, and one view of the store."""
    digests._compared.clear()
    train = data / "train.arrow"
    digest = read_digest(train)
    if digest is None:
        raise SystemExit(f"{train}: no digest")
    CheckedFile(train, digest).check()
    for shard in KnowledgeStore.open(store).manifest.shards:
        whole = FileDigest.whole(shard.num_bytes, shard.sha256)
        CheckedFile(store / shard.file, whole).check()


def size(folder: Path) -> int:
    """Return the bytes of the files that an epoch reads."""
    return sum(
        path.stat().st_size for path in folder.rglob("*.arrow") if path.stem not in ("val", "test")
    )


if __name__ == "__main__":
    main()
