"""Check a GPU in a few minutes: numerics, speed, KR's cost, memory, students side by side.

    python benchmarks/gpu_check.py
    python benchmarks/gpu_check.py --device cpu --tiny     # tests the program on any machine

Needs torch and krscale's core, but no Ray, MLflow or Optuna. Writes `benchmarks/results/gpu.json`
and its section of `docs/benchmarks.md`. Without a GPU it prints that and ends with exit code 2.
With `--tiny` it only prints. No part begins once `--minutes` have passed; skipped parts are listed.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from typing import Any

import torch
from parts import gpu_at_size, gpu_processes
from parts.document import write_section
from parts.gpu import Sizes, all_parts, gpu_table, known_peak
from parts.measuring import ROOT, commit, machine

from krscale.files import write_json

RESULT = ROOT / "benchmarks" / "results" / "gpu.json"


def main(words: list[str] | None = None) -> int:
    """Run every part; return 0, or 1 if the numerics exceed their bounds, or 2 without a GPU."""
    arguments = _arguments(words)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("gpu_check: torch sees no GPU here; nothing was measured", file=sys.stderr)
        return 2
    result = _measure(device, arguments)
    if device.type == "cuda" and not arguments.tiny:
        write_json(RESULT, result)
        write_section("gpu", "GPU", gpu_table(result))
    beyond = [
        name for name, row in result.get("numerics", {}).items() if row["error"] > row["bound"]
    ]
    if beyond:
        print(f"gpu_check: beyond their bounds: {', '.join(beyond)}", file=sys.stderr)
    return 1 if beyond else 0


def _measure(device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run every part that the time allows."""
    sizes = Sizes.tiny() if arguments.tiny else Sizes()
    on_gpu = device.type == "cuda"
    peak = arguments.peak_tflops
    if on_gpu and not peak:
        peak = known_peak(torch.cuda.get_device_name(device))
    parts = all_parts(device, sizes, peak)
    parts["cost"] = partial(gpu_at_size.cost, device, sizes)
    parts["against_paper"] = partial(gpu_at_size.against_paper, device, sizes)
    parts["together"] = partial(gpu_processes.together, device, sizes)
    if on_gpu:
        parts["memory"] = partial(gpu_processes.memory, device, sizes)
    result: dict[str, Any] = {"machine": machine(device), "commit": commit()}
    result |= {"batch": sizes.batch, "heads_teach": True, "seconds": {}}
    began = time.perf_counter()
    for name, measure in parts.items():
        started = time.perf_counter()
        if started - began > 60 * arguments.minutes:
            result.setdefault("left_out", []).append(name)
            continue
        result[name] = measure()
        result["seconds"][name] = round(time.perf_counter() - started, 1)
        print(f"{name}: {result[name]} ({result['seconds'][name]} s)", flush=True)
    return result


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="smallest sizes; writes nothing")
    parser.add_argument(
        "--peak-tflops",
        type=float,
        default=0.0,
        help="dense bf16 peak of the card, for one that is not in parts/gpu.py",
    )
    parser.add_argument("--minutes", type=float, default=6.0, help="begin no part after so long")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
