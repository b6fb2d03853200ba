"""Mutated files of every format that krscale reads: one `KrscaleError` each, or read as it is."""

from __future__ import annotations

import os
import random
import resource
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from drilling import Drill
from readers import STRANGERS, Reader

from krscale.errors import KrscaleError

pytestmark = [pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore")]
FILES = int(os.environ.get("KRSCALE_DRILL_FILES", "17000"))
"""Files of all formats together. The long form is
`KRSCALE_DRILL_FILES=100000 make drills ARGS=tests/drills/test_damaged_inputs.py`."""
SHORT, SHARES = {"images": 3}, {"images": 1 / 6}
"""Fewer files of a slow format: images are of seven formats, and many in a folder."""
MAX_SECONDS, MAX_BYTES = 30.0, 2**30
"""Limit of time for one file, on a busy machine, and limit of memory for all files."""


@pytest.mark.parametrize("name", STRANGERS)
def test_a_few_of_each_format(name: str, tmp_path: Path) -> None:
    _mutate(STRANGERS[name], name, SHORT.get(name, 12), tmp_path)


@pytest.mark.drill
@pytest.mark.parametrize("name", STRANGERS)
def test_mutated_files(name: str, drill: Drill, tmp_path: Path) -> None:
    drill.must_hold("one error in krscale's own words for each, or the file is read")
    drill.must_hold(f"each within {MAX_SECONDS:g} s, all within {MAX_BYTES >> 20} MiB")
    before = _peak_bytes()
    number = round(FILES * SHARES.get(name, 1.0) / (len(STRANGERS) - len(SHARES)))
    refused, read, slowest = _mutate(STRANGERS[name], name, number, tmp_path)
    grown = _peak_bytes() - before
    assert grown < MAX_BYTES
    drill.injected(f"mutated {name}", refused + read, kind="bad input")
    drill.held(f"{refused:,} refused, {read:,} read")
    drill.held(f"the slowest took {slowest:.1f} s; {grown >> 20} MiB more than before")
    drill.measured(f"slowest of {name}", slowest, "s")


def _mutate(reader: Reader, name: str, number: int, folder: Path) -> tuple[int, int, float]:
    """Change a file `number` times; return how many were refused and read, and the slowest."""
    inputs = folder / "inputs"
    inputs.mkdir()
    reader.write(inputs)
    reader.read(inputs)  # undamaged files are read
    whole = {path: path.read_bytes() for path in inputs.glob(reader.pattern) if path.is_file()}
    found, slowest = Counter[str](), 0.0
    for seed in range(number):
        draw = random.Random(f"{name}{seed}")
        path = draw.choice(sorted(whole))
        path.write_bytes(reader.mutate(whole[path], draw))
        began = time.monotonic()
        try:
            reader.read(inputs)
            found["read"] += 1
        except KrscaleError as error:
            str(error).encode()  # it can be encoded
            found["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"{name} {seed}: {path.name}: {type(error).__name__}") from error
        slowest = max(slowest, time.monotonic() - began)
        assert slowest < MAX_SECONDS, f"{name} {seed}: {path.name}"
        path.write_bytes(whole[path])
        shutil.rmtree(folder / "cache", ignore_errors=True)
    return found["refused"], found["read"], slowest


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
