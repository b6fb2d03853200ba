"""What a storage on S3 costs: how it is counted, and what the page says of it."""

import subprocess
import sys

from parts.storages import Costs, compared, storage_table
from running import ROOT


def test_rounds_are_compared_pair_by_pair() -> None:
    costs = {
        "folder": [Costs(10.0, 20.0, 0.0), Costs(20.0, 20.0, 0.0), Costs(10.0, 20.0, 0.0)],
        "s3": [Costs(11.0, 21.0, 0.4), Costs(21.0, 22.0, 0.5), Costs(30.0, 21.0, 0.3)],
    }
    result = compared(costs)
    assert (result["s3_over_folder"], result["s3_over_folder_cpu"]) == (1.1, 1.05)
    where = {"command": "c", "commit": "0123456789abcdef", "machine": "m"}
    table = storage_table({**where, "load_before_and_after": [1, 2], "settings": ["a=1"], **result})
    assert "| 1.1 | 1.050 to 3.000 | <= 1.1 |" in table
    assert "made small by `a=1`" in table
    assert "up to 0.5 s" in table


def test_processes_that_outlive_their_command_are_counted() -> None:
    """In a process of its own, which becomes the parent of orphaned processes."""
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    leaves = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {busy!r}])"
    code = (
        "import sys; from parts.storages import measured\n"
        f"print(measured([sys.executable, '-c', {leaves!r}], {{}}).cpu_seconds)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}, check=True,
    )  # fmt: skip
    assert float(done.stdout) >= 0.3
