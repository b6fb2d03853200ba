"""Measure what a storage on S3 costs compared to a folder: the search of `make run`, in turns.

    python benchmarks/storage.py [--rounds N] [--set KEY=VALUE ...]

Writes `benchmarks/results/storage.json` and its section of `docs/benchmarks.md`. The server is moto
on loopback, in this process; each search starts with an empty storage and an empty cache.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from parts.document import write_section
from parts.measuring import ROOT, commit, machine
from parts.s3_server import CREDENTIALS, s3_server
from parts.storages import Costs, compared, run_search, storage_table

from krscale.files import write_json

RESULT = ROOT / "benchmarks" / "results" / "storage.json"


def main() -> None:
    """Run the rounds and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="of the search; makes it small")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    costs: dict[str, list[Costs]] = {"folder": [], "s3": []}
    with s3_server() as where:
        for number in range(arguments.rounds):
            # The order is reversed in every second round: the first search reads colder files.
            for name in sorted(costs, reverse=bool(number % 2)):
                costs[name].append(_cost(name, where, number, arguments.set))
                print(f"round {number + 1}: {name} {costs[name][-1]}", flush=True)
    result: dict[str, Any] = {
        "machine": machine(torch.device("cpu")),
        "commit": commit(),
        "command": shlex.join(["python", "benchmarks/storage.py", *sys.argv[1:]]),
        "load_before_and_after": [round(load, 1), round(os.getloadavg()[0], 1)],
        "settings": arguments.set,
        **compared(costs),
    }
    write_json(RESULT, result)
    table = storage_table(result)
    write_section("storage", "A storage on S3", table)
    print(table)


def _cost(name: str, where: str, number: int, settings: list[str]) -> Costs:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as text:
        folder = Path(text)
        storage = f"s3://bucket/round-{number}" if name == "s3" else str(folder / "runs")
        variables = {
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": f"http://{where}",
            "KRSCALE_CACHE_PATH": str(folder / "cache"),
            # With Ray's default of 15 its workers yield to everything else on the machine.
            "RAY_worker_niceness": "0",
        }
        return run_search([f"storage_path={storage}", *settings], variables)


if __name__ == "__main__":
    main()
