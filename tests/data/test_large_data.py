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

SHAPE = (3, 96, 96)
NUM_IMAGES = 8192
ROOM_MB = 96


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts so on Linux only")
def test_an_epoch_of_data_that_cannot_be_held(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    width = int(np.prod(SHAPE))
    generator = np.random.default_rng(0)
    schema = pa.schema([("image", pa.binary(width)), ("label", pa.int64())])
    with pq.ParquetWriter(
        path, schema, compression="none", use_dictionary=False, write_statistics=False
    ) as writer:
        for start in range(0, NUM_IMAGES, 512):
            pixels = pa.py_buffer(generator.bytes(512 * width))
            images = pa.Array.from_buffers(pa.binary(width), 512, [None, pixels])
            writer.write_table(pa.table([images, np.arange(start, start + 512) % 4], schema))
    program = Path(__file__).with_name("within_memory.py")
    root = program.parents[2]
    done = subprocess.run(
        [sys.executable, program, path, tmp_path / "cache", str(ROOM_MB), json.dumps(SHAPE)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes"] > ROOM_MB * 2**20
    assert found["refused"], "the limit is none: a copy of the training images fits below it"
    assert found["seen"] == found["num_samples"]["train"] > NUM_IMAGES / 2
