"""Train a student from a given folder of images and a given teacher: krscale and its peers.

    python benchmarks/own_folder.py [--peers torchdistill,timm,...] [--again]

Every peer has its recipe in `benchmarks/peers/NAME`, its own virtual environment, and the same
images, teacher, student, epochs and batch size. All accuracies are on the same test images. Results
of unchanged recipes are kept, so the command continues where it was stopped. Writes
`benchmarks/results/own_folder.json` and its section of `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from parts.document import write_section
from parts.measuring import ROOT, commit, machine
from parts.peer_list import PEERS_BY_NAME
from parts.peer_run import PeerError, install, prepare, run, run_loops
from parts.peers_table import peers_table

from krscale.files import write_json

RESULT = ROOT / "benchmarks" / "results" / "own_folder.json"
LOOP = "own_loop"


def main() -> int:
    """Measure the chosen peers that were not measured yet, and write the table."""
    arguments = _arguments()
    storage: Path = arguments.storage.resolve()
    storage.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"peers": {}}
    result["machine"] = machine(torch.device("cpu"))
    shared = prepare(storage)
    failed = False
    for name in arguments.peers:
        before = result["peers"].get(name, {})
        if name in PEERS_BY_NAME:
            fresh = before.get("digest") == PEERS_BY_NAME[name].digest()
        else:
            fresh = bool(before)
        if fresh and not arguments.again:
            print(f"{name}: measured already", flush=True)
            continue
        print(f"{name}:", flush=True)
        try:
            found = _noted(lambda name=name: _measure(name, storage, shared))
        except PeerError as error:
            print(f"  failed: {error}", flush=True)
            failed = True
            continue
        result["peers"][name] = found
        write_json(RESULT, result)
        print(f"  {found}", flush=True)
    table = peers_table(result)
    write_section("own_folder", "Your own folder, your own teacher: krscale and its peers", table)
    print(table)
    return 1 if failed else 0


def _measure(name: str, storage: Path, shared: Path) -> dict[str, Any]:
    if name == LOOP:
        return run_loops(storage, shared)
    peer = PEERS_BY_NAME[name]
    installed = install(peer, storage)
    return {"digest": peer.digest()} | installed | run(peer, storage, shared)


def _noted(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measure, and add the commit, the command and the load of the machine."""
    load = os.getloadavg()[0]
    found = measure()
    return found | {
        "load_before_and_after": [round(load, 1), round(os.getloadavg()[0], 1)],
        "commit": commit(),
        "command": shlex.join(["python", "benchmarks/own_folder.py", *sys.argv[1:]]),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default=",".join([*PEERS_BY_NAME, LOOP]))
    parser.add_argument("--again", action="store_true", help="also what was measured already")
    parser.add_argument("--storage", type=Path, default=ROOT / "runs" / "own_folder")
    arguments = parser.parse_args()
    arguments.peers = arguments.peers.split(",")
    unknown = [name for name in arguments.peers if name not in {*PEERS_BY_NAME, LOOP}]
    if unknown:
        parser.error(f"no such peer: {', '.join(unknown)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
