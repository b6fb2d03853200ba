"""Measure the cost of threads that wait for each other, on free cores and beside busy processes.

Prints the training steps per second of the default teacher, relative to one thread on free cores,
by the number of threads, by how they wait, and by the number of processes that keep other cores
busy:

    python benchmarks/waiting.py [--seconds 4] [--rounds 2]

Each figure is measured in a separate process, since a thread pool reads its settings when it is
loaded; the median of the rounds is printed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

# krscale is not imported here: it sets how threads wait, before torch is loaded.
ROOT = Path(__file__).resolve().parents[1]
NEIGHBOUR = "while True: pass"
WAYS: dict[str, dict[str, str]] = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "all, as torch does": {},
    "all, GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "all, GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "all, OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
SETTINGS = tuple({name for way in WAYS.values() for name in way})


def main() -> None:
    """Measure every way beside 0, 1 and as many busy processes as there are cores, and print."""
    options = _arguments()
    if options.measure:
        print(steps_per_second(options.seconds))
        return
    crowds = sorted({0, 1, os.cpu_count() or 1})
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(options.rounds):
        for crowd in crowds:
            for way in WAYS:
                found.setdefault((way, crowd), []).append(beside(crowd, way, options.seconds))
    base = median(found["1 thread", 0])
    print(f"{'threads':<30}" + "".join(f"{f'{crowd} busy':>20}" for crowd in crowds))
    for way in WAYS:
        cells = (
            f"{median(values) / base:.2f} ({min(values) / base:.2f}..{max(values) / base:.2f})"
            for values in (found[way, crowd] for crowd in crowds)
        )
        print(f"{way:<30}" + "".join(f"{cell:>20}" for cell in cells))
    print(f"1.00 is {base:.1f} steps a second")


def beside(crowd: int, way: str, seconds: float) -> float:
    """Return the steps per second of one way beside `crowd` busy processes."""
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    env = {**kept, **WAYS[way], "PYTHONPATH": os.pathsep.join(sys.path)}
    others = [subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) for _ in range(crowd)]
    try:
        command = [sys.executable, __file__, "--measure", "--seconds", str(seconds)]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, check=True)
    finally:
        for other in others:
            other.kill()
            other.wait()
    return float(done.stdout.split()[-1])


def steps_per_second(seconds: float) -> float:
    """Return the steps per second of the default teacher on random images, in this process."""
    import torch  # before krscale, see above
    from torch.nn import functional as F

    from krscale.config import load
    from krscale.data import describe_data
    from krscale.setup.network_builder import build_teacher

    experiment = load()
    task = describe_data(experiment.data, experiment.cache_path)
    model = build_teacher(experiment, task)
    optimiser = torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True, fused=True)
    batch = experiment.train.global_batch_size
    images, labels = torch.rand(batch, *task.image_shape), torch.arange(batch) % task.num_classes
    count, started = -3, 0.0  # the first steps allocate
    while count < 1 or time.perf_counter() - started < seconds:
        if count == 0:
            started = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()
        count += 1
    return count / (time.perf_counter() - started)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of every figure")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
