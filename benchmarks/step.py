"""Measure the effect of the store: steps, building, accuracy, loading and memory.

Writes `benchmarks/results/step.json` and its section of `docs/benchmarks.md`. Runs without Ray,
wherever torch does:

    python benchmarks/step.py [--device cuda]
        [--parts steps,options,widths,build,accuracy,loader,memory]
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from parts.document import write_section
from parts.loading import measure_loader
from parts.measuring import ROOT, clock_for, commit, machine
from parts.memory import measure_memory
from parts.options import measure_options
from parts.setting import Setting
from parts.steps import measure_steps
from parts.storing import measure_accuracy, measure_build
from parts.table import step_table
from parts.widths import measure_widths

from krscale.files import write_json

RESULT = ROOT / "benchmarks" / "results" / "step.json"
# Small, because the time of a step does not depend on the number of samples.
TIMED = (
    "data.glyphs.image_size=32",
    "data.glyphs.num_train=512",
    "data.glyphs.num_val=64",
    "data.glyphs.num_test=64",
    "teacher.width=32",
    "views.num_views=2",
    "teacher.num_epochs=1",
)
LEARNED = (
    "data.glyphs.num_train=6144",
    "data.glyphs.num_val=4000",
    "data.glyphs.num_test=64",
    "teacher.width=16",
    "teacher.num_epochs=12",
    # Short, to allow for many seeds: the spread between two trainings hides the difference.
    "train.num_epochs=4",
)


def main() -> None:
    """Run the chosen parts and write what they found; parts left out keep their last result."""
    arguments = _arguments()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    result |= {
        "command": shlex.join(["python", "benchmarks/step.py", *sys.argv[1:]]),
        "commit": commit(),
        "machine": machine(device),
        "clock": clock_for(device)[1],
        "device": device.type,
    }
    for name, measure in _parts(arguments).items():
        if name in arguments.parts:
            started = time.perf_counter()
            print(f"{name}:", flush=True)
            for key, value in measure().items():
                # Two parts measure the store.
                result[key] = result.get(key, {}) | value if key == "store" else value
            measured_by = {"command": result["command"], "commit": result["commit"]}
            result.setdefault("parts", {})[name] = measured_by
            write_json(RESULT, result)
            print(f"  ({time.perf_counter() - started:.0f} s)", flush=True)
    table = step_table(result)
    write_section("step", "Step, store, loader and memory", table)
    print(table)


def _parts(arguments: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    storage: Path = arguments.storage
    on_device = f"train.device={arguments.device}"

    def steps() -> dict[str, Any]:
        setting = Setting(storage, *TIMED, on_device)
        facts = setting.assets.teacher
        teacher = f"resnet width {facts.width} ({facts.num_parameters:,} parameters)"
        return {"teacher": teacher, "pairs": measure_steps(setting, arguments.rounds)}

    def options() -> dict[str, Any]:
        return {"options": measure_options(Setting(storage, *TIMED, on_device), 1)}

    def widths() -> dict[str, Any]:
        return {"widths": measure_widths(Setting(storage, *TIMED, on_device), arguments.rounds)}

    def build() -> dict[str, Any]:
        return {"store": measure_build(Setting(storage, *LEARNED, on_device), storage, 3)}

    def accuracy() -> dict[str, Any]:
        return {"store": measure_accuracy(storage, arguments.seeds, *LEARNED, on_device)}

    def loader() -> dict[str, Any]:
        measured = measure_loader(storage, 3)
        return {
            "loader_over_dataloader": measured["over_dataloader_per_sample"],
            "loader": measured,
        }

    def memory() -> dict[str, Any]:
        return measure_memory(storage)

    return {f.__name__: f for f in (steps, options, widths, build, accuracy, loader, memory)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--parts", default="steps,options,widths,build,accuracy,loader,memory")
    parser.add_argument("--rounds", type=int, default=2, help="epochs of every kind of step")
    parser.add_argument("--seeds", type=int, default=4, help="of the accuracy comparison")
    parser.add_argument("--storage", type=Path, default=ROOT / "runs" / "benchmarks")
    arguments = parser.parse_args()
    arguments.parts = arguments.parts.split(",")
    return arguments


if __name__ == "__main__":
    main()
