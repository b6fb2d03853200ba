"""Install the wheel as a new user would, in a fresh environment of every available Python.

`make test-wheel`: for each of Python 3.11 to 3.14 on this machine, a separate environment outside
the checkout. First the core alone: the loss in a custom loop. Then `krscale[search]`: a small
search with the commands. If a command fails, the end of its output is printed. A missing Python is
reported.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
LOOP = """
import sys
import torch, krscale
assert "site-packages" in krscale.__file__, krscale.__file__
def network(width):
    block = lambda i, o: torch.nn.Sequential(torch.nn.Conv2d(i, o, 3, padding=1), torch.nn.ReLU())
    head = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width, 4))
    return torch.nn.Sequential(block(1, width), block(width, width), block(width, width), *head)
images, labels = torch.randn(64, 1, 8, 8), torch.arange(64) % 4
batches = list(zip(images.split(16), labels.split(16)))
student = network(4)
kr = krscale.KRLoss.from_networks(network(8), student, batches, granularity=2, sparsity=0.3)
kr.begin_epoch(0.0)
kr(images, labels).backward()
assert all(p.grad is not None for p in student.parameters())
heavy = {"ray", "optuna", "mlflow"} & set(sys.modules)
assert not heavy, heavy
print("KRLoss:", kr)
"""
SEARCH = (
    "cluster.num_cpus=1", "teacher.width=8", "teacher.num_epochs=2", "views.num_views=1",
    "ladder.capacities=['1/4']", "train.num_epochs=2", "search.trials_per_size=1",
    "search.num_final_seeds=1", "search.methods=['kr']",
)  # fmt: skip
"""A search of two trainings."""


class FailedError(Exception):
    """A command failed; its output is the message."""


def main() -> int:
    """Try every Python, print a line each, and fail if any failed."""
    with tempfile.TemporaryDirectory(prefix="krscale-wheel-") as folder:
        wheel = _build(Path(folder))
        print(f"wheel: {wheel.name}, {wheel.stat().st_size / 1e6:.2f} MB", flush=True)
        outcomes = [_try(version, wheel, Path(folder)) for version in VERSIONS]
    return 0 if "ok" in outcomes and "failed" not in outcomes else 1


def _build(folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    _run(command, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _torch_alone(folder: Path) -> Path:
    """Write only torch's pin, as other builds are gigabytes; all else is the newest version."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    file = folder / "torch.txt"
    file.write_text("\n".join(line for line in lines if line.startswith("torch==")))
    return file


def _try(version: str, wheel: Path, folder: Path) -> str:
    python = next(_pythons(version), None)
    if python is None:
        print(f"Python {version}: not on this machine", flush=True)
        return "absent"
    place, started = folder / version, time.monotonic()
    place.mkdir()
    try:
        _run([python, "-m", "venv", str(place / "env")], place)
        own = str(place / "env/bin/python")
        pip = [own, "-m", "pip", "--disable-pip-version-check"]
        install = [*pip, "install", "--quiet", "--constraint", str(_torch_alone(folder))]
        _run([*install, str(wheel)], place)
        packages = json.loads(_run([*pip, "list", "--format", "json"], place))
        _run([own, "-c", LOOP], place)
        missing = _run([own, "-m", "krscale", "tune", "--dry-run"], place, code=2)
        if "krscale[search]" not in missing:
            raise FailedError(f"the missing extra is not named:\n{missing}")
        print(f"Python {version}: core ok, {len(packages)} packages", flush=True)
        _run([*install, f"{wheel}[search]"], place)
        settings = [part for setting in SEARCH for part in ("--set", setting)]
        command = str(place / "env/bin/krscale")
        _run([command, "tune", "jobs/digits.toml", *settings, "--quiet"], place)
        _run([command, "report", "digits"], place)
    except FailedError as error:
        print(f"Python {version}: FAILED\n{error}", flush=True)
        return "failed"
    finally:
        shutil.rmtree(place / "env", ignore_errors=True)
    print(f"Python {version}: search ok, {time.monotonic() - started:.0f} s in all", flush=True)
    return "ok"


def _pythons(version: str) -> Iterator[str]:
    """Yield the interpreters of a version, from the path and from pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python")]
    for candidate in filter(None, candidates):
        found = subprocess.run(  # noqa: S603
            [str(candidate), "-c", "import sys, venv, ensurepip; print(sys.version_info[:2])"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if found.stdout.strip() == f"({version.replace('.', ', ')})":
            yield str(candidate)


def _run(command: list[str], folder: Path, code: int = 0) -> str:
    """Run a command outside the checkout, and return all its output."""
    left_out = ("PYTHONPATH", "RAY_ADDRESS", "VIRTUAL_ENV", "KRSCALE_STORAGE_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    try:
        done = subprocess.run(  # noqa: S603
            command, cwd=folder, env=environment, text=True, check=False, timeout=1200,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise FailedError(str(error)) from None
    if done.returncode != code:
        raise FailedError(
            f"{' '.join(command)}\nexit code {done.returncode}\n{done.stdout[-3000:]}"
        )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
