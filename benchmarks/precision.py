"""Measure bf16 against fp32 on this machine: the time of a KR step, and accuracy over seeds.

Prints, and writes no file. The result shows whether `train.precision = "auto"` chooses correctly on
a processor.

    python benchmarks/precision.py [--seeds 8] [--capacity 1/16] [--device cuda]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from parts.measuring import clock_for, commit, interleave, machine, ratio
from parts.setting import Setting
from scipy import stats

from krscale.models.capacity import num_parameters
from krscale.parallel import Workers
from krscale.setup.build import build_training
from krscale.setup.networks import Networks
from krscale.setup.sizes import ladder_sizes
from krscale.training.loop import Training, evaluate
from krscale.training.precision import computes_bf16

PRECISIONS = ("fp32", "bf16")
NUM_ROUNDS = 6


def main() -> None:
    """Print the machine, the ratio of times, and the accuracies of both precisions."""
    arguments = _arguments()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    print(f"{machine(device)}; commit {commit()}")
    print(f"auto is {'bf16' if computes_bf16(device) else 'fp32'} here")
    with tempfile.TemporaryDirectory() as storage:
        setting = Setting(
            Path(storage),
            "data.source=digits",
            f"ladder.capacities=['{arguments.capacity}']",
            f"train.device={arguments.device}",
        )
        _time(setting)
        _compare(setting, arguments.seeds)


def _time(setting: Setting) -> None:
    clock, description = clock_for(setting.device)
    epochs = {name: _training(setting, name, 0, num_epochs=1000) for name in PRECISIONS}
    for training in epochs.values():
        training._validate = dict  # type: ignore[method-assign]  # the steps alone are timed
    work = {name: training.run_epoch for name, training in epochs.items()}
    seconds = interleave(work, NUM_ROUNDS, clock)
    students = num_parameters(epochs["fp32"].student)
    print(
        f"a KR step of a student of {students:,} parameters in bf16 takes "
        f"{ratio(seconds, 'bf16', 'fp32')} of the time in fp32 ({description})",
        flush=True,
    )


def _compare(setting: Setting, num_seeds: int) -> None:
    found: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    for seed in range(num_seeds):
        for name in PRECISIONS:
            training = _training(setting, name, seed)
            while not training.finished:
                training.run_epoch()
            dataset = setting.assets.dataset
            with torch.autocast(setting.device.type, torch.bfloat16, enabled=name == "bf16"):
                held_out = [
                    evaluate(training.student, dataset, dataset.split(split), training.workers)
                    for split in ("val", "test")
                ]
            found[name].append(100.0 * sum(result["accuracy"] for result in held_out) / 2)
        print(
            f"seed {seed}: " + ", ".join(f"{n} {a[-1]:.2f} %" for n, a in found.items()), flush=True
        )
    gains = [b - a for a, b in zip(found["fp32"], found["bf16"], strict=True)]
    test = stats.ttest_1samp(gains, 0.0).confidence_interval(0.95)
    print(
        f"accuracy, mean of validation and test, over {num_seeds} seeds: bf16 minus fp32 "
        f"{sum(gains) / len(gains):+.2f} points, 95 % interval {test.low:+.2f} .. {test.high:+.2f}"
    )


def _training(setting: Setting, name: str, seed: int, num_epochs: int = 12) -> Training:
    experiment = setting.with_changes(
        "distill.method=kr",
        f"train.precision={name}",
        f"train.seed={seed}",
        f"train.num_epochs={num_epochs}",
    )
    (size,) = ladder_sizes(Networks.resolve(experiment, setting.assets.dataset))
    return build_training(experiment, setting.assets, size.width, Workers.alone(setting.device))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--capacity", default="1/16", help="of the student, e.g. 1/16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
