"""A data set larger than the memory that a process may allocate."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drilling import Drill

# The limit counts more than memory in use: Arrow's own allocator reserves 1 GB of addresses at
# once, and glibc keeps large freed blocks. These settings prevent both.
ALLOCATOR = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_MMAP_THRESHOLD_": "1048576"}
SHAPE = (3, 128, 128)
NUM_TRAIN = 4096
ROOM_MB = 144


def write(file: Path, num_images: int, seed: int) -> None:
    """Write images of noise, as raw pixels, without holding them all in memory here either."""
    width = int(np.prod(SHAPE))
    schema = pa.schema([("image", pa.binary(width)), ("label", pa.int64())])
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    generator = np.random.default_rng(seed)
    with pq.ParquetWriter(file, schema, write_batch_size=64, **options) as writer:
        for _ in range(0, num_images, 256):
            pixels = pa.py_buffer(generator.bytes(256 * width))
            images = pa.Array.from_buffers(pa.binary(width), 256, [None, pixels])
            writer.write_table(pa.table([images, np.arange(256) % 4], schema))


@pytest.mark.drill
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts so on Linux only")
def test_an_epoch_of_data_that_cannot_be_held(tmp_path: Path, drill: Drill) -> None:
    megabytes = NUM_TRAIN * SHAPE[0] * SHAPE[1] * SHAPE[2] >> 20
    drill.injected(f"{ROOM_MB} MB of memory, for training images of {megabytes} MB")
    drill.must_hold("an epoch ends, with every image once")
    data = tmp_path / "data"
    data.mkdir()
    for seed, (name, num_images) in enumerate((("train", NUM_TRAIN), ("val", 256), ("test", 256))):
        write(data / f"{name}.parquet", num_images, seed)
    program = Path(__file__).with_name("within_memory.py")
    done = subprocess.run(
        [sys.executable, program, data, tmp_path / "cache", str(ROOM_MB), json.dumps(SHAPE)],
        env={
            **os.environ,
            **ALLOCATOR,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(program.parents[2]),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes"] > ROOM_MB * 2**20
    assert found["refused"], "the limit is none: a copy of the training images fits below it"
    assert found["seen"] == found["num_samples"]["train"] == NUM_TRAIN
    drill.held(f"{NUM_TRAIN:,} images were seen")
