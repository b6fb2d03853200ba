"""Look at a GPU in a few minutes: numerics, bf16, compiling, memory, speed, students side by side.

    python benchmarks/gpu_check.py
    python benchmarks/gpu_check.py --device cpu --tiny     # the program itself, anywhere

Needs torch and krscale's core, no Ray, MLflow or Optuna. Writes `benchmarks/results/gpu.json` and
its section of `docs/benchmarks.md`. Without a GPU it says so and ends with 2. With `--tiny` it only
prints. The memory probe of `search.gpus_per_trial = "auto"` is not compared: it needs Ray.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch
from parts.document import write_section
from parts.gpu import Sizes, all_parts, gpu_table
from parts.measuring import ROOT, commit, machine

from krscale.files import write_json

RESULT = ROOT / "benchmarks" / "results" / "gpu.json"


def main(words: list[str] | None = None) -> int:
    """Run every part; return 0, 1 where the numerics are beyond their bounds, 2 without a GPU."""
    arguments = _arguments(words)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("gpu_check: torch sees no GPU here; nothing was measured", file=sys.stderr)
        return 2
    sizes = Sizes.tiny() if arguments.tiny else Sizes()
    result: dict[str, Any] = {"machine": machine(device), "commit": commit(), "seconds": {}}
    for name, measure in all_parts(device, sizes, arguments.peak_tflops).items():
        started = time.perf_counter()
        result[name] = measure()
        result["seconds"][name] = round(time.perf_counter() - started, 1)
        print(f"{name}: {result[name]} ({result['seconds'][name]} s)", flush=True)
    if device.type == "cuda" and not arguments.tiny:
        write_json(RESULT, result)
        write_section("gpu", "GPU", gpu_table(result))
    beyond = [name for name, row in result["numerics"].items() if row["error"] > row["bound"]]
    if beyond:
        print(f"gpu_check: beyond their bounds: {', '.join(beyond)}", file=sys.stderr)
    return 1 if beyond else 0


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="smallest sizes; writes nothing")
    parser.add_argument(
        "--peak-tflops", type=float, default=0.0, help="dense bf16 peak from the card's data sheet"
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
