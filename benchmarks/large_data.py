"""Prepare, teach and train an epoch on more images than the allowed memory can hold.

Writes `benchmarks/results/large_data.json`:

    python benchmarks/large_data.py [--images 65536] [--room 224]

JPEG images in Parquet files are generated once. Then the kernel's limit on what a process may
allocate (RLIMIT_DATA: all memory but mapped files) is set to little more than importing krscale
takes. Under it, data, teacher and store are prepared and a student is trained on them by KR. At the
end a plain copy of the training images is tried: it must be refused, or the limit has no effect.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from parts.measuring import ROOT, commit, machine
from PIL import Image

from krscale.config import Experiment, load
from krscale.files import write_json
from krscale.parallel import Workers
from krscale.setup.build import Assets, build_training
from krscale.setup.networks import Networks
from krscale.setup.prepare import prepare
from krscale.setup.sizes import find_size

RESULT = ROOT / "benchmarks" / "results" / "large_data.json"
# The limit also counts memory that is not in use: Arrow's own allocator reserves 1 GB of addresses
# at once, and glibc keeps large blocks that were freed.
ALLOCATOR = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_MMAP_THRESHOLD_": "1048576"}
SIDE, NUM_CLASSES, MEGA = 64, 10, 2**20
SETTINGS = (
    "data.source=parquet",
    "views.num_views=1",
    "views.crop_padding=4",
    "views.flip=true",
    "teacher.model='parts.patches:Patches'",
    "teacher.options={}",
    "teacher.width=32",
    "teacher.num_epochs=1",
    "student.model='parts.patches:Patches'",
    "student.options={}",
    "distill.capacity='1/4'",
    "distill.granularity=2",
    "train.num_epochs=1",
    "train.device=cpu",
)


def main() -> None:
    """Generate, measure in a separate process, write and print."""
    options = _arguments()
    folder = options.storage / f"images-{options.images}"
    if options.measure:
        print(json.dumps(_measure(options.storage, folder, options.room * MEGA)))
        return
    encoded = _generate(folder, options.images)
    shutil.rmtree(options.storage / "cache", ignore_errors=True)
    paths = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, __file__, "--measure", *sys.argv[1:]],
        env={**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        check=True,
    )
    result = {
        "command": shlex.join(["python", "benchmarks/large_data.py", *sys.argv[1:]]),
        "commit": commit(),
        "machine": machine(torch.device("cpu")),
        "images": f"{options.images} JPEG of {SIDE}x{SIDE}x3",
        "encoded_mb": round(encoded / MEGA),
        **json.loads(done.stdout),
    }
    write_json(RESULT, result)
    print(json.dumps(result, indent=2))


def _generate(folder: Path, num_images: int) -> int:
    """Write Parquet files unless they exist; return their size in bytes."""
    for split, count in (("train", num_images), ("val", 1000), ("test", 1000)):
        file = folder / f"{split}-{count}.parquet"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _write(file, count, seed=len(split))
    return sum(file.stat().st_size for file in folder.glob("*.parquet"))


def _write(file: Path, num_images: int, seed: int) -> None:
    """Write smooth random images with a stripe that encodes the class."""
    generator = np.random.default_rng(seed)
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    half_done = file.with_suffix(".part")
    with pq.ParquetWriter(half_done, schema, use_dictionary=["label"]) as writer:
        for start in range(0, num_images, 1024):
            labels = generator.integers(0, NUM_CLASSES, min(1024, num_images - start))
            images = [_encode(generator, int(label)) for label in labels]
            writer.write_table(pa.table([images, labels], schema))
    half_done.replace(file)


def _encode(generator: np.random.Generator, label: int) -> bytes:
    coarse = generator.integers(0, 200, (8, 8, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    pixels[label * 6 : label * 6 + 6, :, label % 3] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _measure(storage: Path, folder: Path, room: int) -> dict[str, Any]:
    import sklearn.model_selection  # noqa: F401 - imported late by krscale; its code counts, too

    torch.set_num_threads(1)
    torch.nn.functional.conv2d(torch.zeros(8, 3, 8, 8), torch.zeros(4, 3, 3, 3))
    before = _status("VmData")
    limit = before + room
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    experiment = load(
        None,
        [*SETTINGS, f"storage_path={str(storage)!r}", f"data.path={str(folder)!r}"],
    )
    peaks, clock = _Peaks(), _Phases()
    with peaks:
        prepared = prepare(experiment, clock)
        assets = Assets.open(prepared)
        clock.phase("epoch")
        metrics = _train(experiment, assets)
        clock.phase("")
    images = assets.dataset.split("train").images
    return {
        "limit_mb": round(limit / MEGA),
        "imports_mb": round(before / MEGA),
        "train_pixels_mb": round(images.nbytes / MEGA),
        "store_mb": round(assets.store.manifest.num_bytes / MEGA, 1),
        "copy_refused": _is_refused(images),
        "peak_allocated_mb": round(peaks.most["VmData"] / MEGA),
        "peak_private_mb": round(peaks.most["RssAnon"] / MEGA),
        "peak_mapped_mb": round(peaks.most["RssFile"] / MEGA),
        "seconds": clock.seconds,
        "images_per_second": {
            name: round(len(images) / clock.seconds[name]) for name in ("data", "store", "epoch")
        },
        "val_accuracy": round(metrics["val/accuracy"], 4),
    }


def _train(experiment: Experiment, assets: Assets) -> dict[str, float]:
    width = find_size(Networks.resolve(experiment, assets.dataset)).width
    workers = Workers.alone(torch.device("cpu"))
    return build_training(experiment, assets, width, workers).run_epoch()


def _is_refused(images: np.ndarray) -> bool:
    try:
        np.array(images)
    except MemoryError:
        return True
    return False


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0]) * 1024


class _Phases:
    """Times the phases that `prepare` reports."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._title, self._started = "", 0.0

    def phase(self, title: str) -> None:
        if self._title:
            self.seconds[self._title] = round(time.perf_counter() - self._started, 1)
        self._title, self._started = title, time.perf_counter()
        if title:
            print(f"  {title}", file=sys.stderr, flush=True)

    def advance(self, done: int, total: int) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)


class _Peaks:
    """Samples the memory of this process every 20 ms."""

    def __init__(self) -> None:
        self.most = dict.fromkeys(("VmData", "RssAnon", "RssFile"), 0)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            for name, most in self.most.items():
                self.most[name] = max(most, _status(name))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=65_536, help="training images")
    parser.add_argument("--room", type=int, default=224, help="MB above what imports take")
    storage = ROOT / "runs" / "benchmarks" / "large_data"
    parser.add_argument("--storage", type=Path, default=storage)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
