"""Prepare Parquet data and load an epoch of it with little memory left to allocate.

Usage: within_memory.py PARQUET CACHE MEGABYTES SHAPE, the last as JSON
Prints JSON: samples seen, size of the training split, and whether copying it is refused.
"""

import json
import resource
import sys
from pathlib import Path

import numpy as np
import sklearn.model_selection  # noqa: F401 - imported late by krscale; its code counts, too
import torch

from krscale.config import DataConfig, FilesConfig, ViewsConfig
from krscale.data import prepare_data
from krscale.data.loader import Loader


def allocated() -> int:
    """Return the bytes that the kernel counts against RLIMIT_DATA: all but mapped files."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmData:")[1].split()[0]) * 1024


def is_refused(images: np.ndarray) -> bool:
    try:
        np.array(images)
    except MemoryError:
        return True
    return False


def main() -> None:
    torch.set_num_threads(1)
    torch.zeros(8).sum()
    path, cache, megabytes, shape = sys.argv[1:]
    limit = allocated() + int(megabytes) * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    files = FilesConfig(raw_shape=tuple(json.loads(shape)))
    dataset = prepare_data(DataConfig(source="parquet", path=path, files=files), Path(cache))
    views = ViewsConfig(num_views=1, crop_padding=4, flip=True)
    loader = Loader(dataset, views, global_batch_size=16, seed=0, device=torch.device("cpu"))
    seen: set[int] = set()
    for batch in loader.epoch(0):
        seen |= set(batch.samples.tolist())
    images = dataset.split("train").images
    found = {"seen": len(seen), "bytes": images.nbytes, "refused": is_refused(images)}
    print(json.dumps(found | {"limit": limit, "num_samples": dataset.num_samples}))


main()
