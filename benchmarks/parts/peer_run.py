"""Install a peer into its own virtual environment, run its recipe, and read its accuracy."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from krscale.files import write_json
from parts.measuring import ROOT, commit
from parts.peers import SHARED, Peer, added_lines, own_lines

PARTS = ROOT / "benchmarks" / "parts"
_MISSING = "operator torchvision::nms does not exist"
_SCHEMAS = '''"""Beside a CPU build of torch, torchvision of a package index lacks two schemas."""
import importlib.abc, sys

class _Schemas(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)
            import torch
            _Schemas.kept = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                types = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                _Schemas.kept.define(operator + types)

sys.meta_path.insert(0, _Schemas())
'''


class PeerError(Exception):
    """A command of a recipe failed; the message contains the end of its output."""


def prepare(storage: Path) -> Path:
    """Make images and teacher unless they exist; return their folder."""
    folder = storage / "shared"
    if not (folder / "teacher.pt").exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(SHARED, folder)
        for program in ("make_photos.py", "train_teacher.py"):
            print(f"  {program}", flush=True)
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            _shell(f"{sys.executable} {program}", folder, environment)
    return folder


def install(peer: Peer, storage: Path) -> dict[str, Any]:
    """Run the commands of `install.sh` in a new virtual environment, unless it exists.

    Args:
        peer: The peer to install.
        storage: Keeps environments from one run of the benchmark to the next.

    Returns:
        `install_seconds`, the total time of the installation, and `not_cloned`, the repositories
        that could not be reached.

    Raises:
        PeerError: If anything but a clone fails.
    """
    commands = peer.commands("install")
    folder = environment_of(peer, storage)
    done = folder / "installed.json"
    if done.exists():
        known: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return known
    shutil.rmtree(folder, ignore_errors=True)
    started = time.perf_counter()
    _shell(f"{sys.executable} -m venv {folder}", storage, os.environ)
    not_cloned = []
    for command in commands:
        try:
            _shell(command, folder, _environment(folder))
        except PeerError:
            if not command.startswith("git clone"):
                raise
            not_cloned.append(command.split()[2])
    seconds = round(time.perf_counter() - started, 1)
    _add_schemas(folder)
    found = {"install_seconds": seconds, "not_cloned": not_cloned}
    write_json(done, found)
    return found


def environment_of(peer: Peer, storage: Path) -> Path:
    """Return a peer's virtual environment: one per list of commands and commit of krscale."""
    commands = " ".join(peer.commands("install"))
    known = commands + (commit() if "$KRSCALE" in commands else "")
    return storage / f"env-{hashlib.sha256(known.encode()).hexdigest()[:12]}"


def run(peer: Peer, storage: Path, shared: Path) -> dict[str, Any]:
    """Run the commands of `run.sh` in a new folder with the images and the teacher.

    Returns:
        `seconds` and `test_accuracy`; or `not_run`, the reason, if what the recipe runs is missing
        and has no stand-in that trains.
    """
    environment, folder = environment_of(peer, storage), storage / f"work-{peer.name}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(shared, folder)
    for path in peer.files:
        shutil.copy(path, folder)
    found: dict[str, Any] = {}
    commands = peer.commands("run")
    if peer.needs and (environment / peer.needs).exists():
        commands = [line.replace(peer.needs, str(environment / peer.needs)) for line in commands]
    elif peer.needs:
        stand_in = str(PARTS / peer.stand_in)
        found["stand_in"] = peer.stand_in
        if not peer.stand_in_trains:
            text = _shell(f"PYTHONPATH=. python {stand_in}", folder, _environment(environment))
            found["tried"] = text.strip().splitlines()[-1]
            return found | {"not_run": f"{peer.needs} could not be cloned"}
        commands = [line.replace(peer.needs, stand_in) for line in commands]
    started = time.perf_counter()
    text = "".join(_shell(line, folder, _environment(environment)) for line in commands)
    found["seconds"] = round(time.perf_counter() - started, 1)
    accuracy = float(re.findall(peer.accuracy, text)[-1]) * peer.scale
    return found | {"test_accuracy": round(accuracy, 4)}


def run_loops(storage: Path, shared: Path) -> dict[str, Any]:
    """Run the plain loop and the one with KR; count the lines that the second one adds."""
    loops = SHARED.parent / "own_loop"
    folder = storage / "work-own_loop"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(shared, folder)
    found: dict[str, Any] = {"lines": len(own_lines(loops / "plain.py"))}
    added = added_lines(loops / "plain.py", loops / "kr.py")
    found["added"] = len(added)
    of_kr = [line for line in added if {"kr", "krscale"} & set(re.findall(r"\w+", line))]
    found["added_for_kr"] = len(of_kr)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name in ("plain", "kr"):
        shutil.copy(loops / f"{name}.py", folder)
        started = time.perf_counter()
        text = _shell(f"{sys.executable} {name}.py", folder, environment)
        found[f"{name}_seconds"] = round(time.perf_counter() - started, 1)
        found[f"{name}_accuracy"] = float(text.split()[-1])
    return found


def _environment(folder: Path) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    binaries = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    # One thread each, as the networks are small; an existing cluster is not used.
    alone = {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local"}
    return kept | alone | {"PATH": binaries, "VIRTUAL_ENV": str(folder), "KRSCALE": str(ROOT)}


def _add_schemas(folder: Path) -> None:
    command = [str(folder / "bin" / "python"), "-c", "import torchvision"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    if _MISSING in said:
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "sitecustomize.py").write_text(_SCHEMAS, encoding="utf-8")


def _shell(command: str, folder: Path, environment: Mapping[str, str]) -> str:
    """Run a command line; return its output on both streams."""
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=folder, env=dict(environment), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    if done.returncode:
        raise PeerError(f"{command}\n{done.stdout[-3000:]}")
    return done.stdout
