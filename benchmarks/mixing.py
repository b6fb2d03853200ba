"""Measure whether mixup and CutMix help students: held-out accuracy with and without, over seeds.

One teacher, trained without them, teaches all students; its store contains its outputs for the
mixed images. Prints, and writes no file.

    python benchmarks/mixing.py [--source digits] [--seeds 3] [--epochs 12] [--capacity 1/16]
        [--policies "mixup 0.2"] [--methods plain kr]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from parts.measuring import commit, machine
from parts.setting import Setting
from scipy import stats

from krscale.parallel import Workers
from krscale.setup.build import build_training
from krscale.setup.networks import Networks
from krscale.setup.sizes import ladder_sizes
from krscale.training.loop import evaluate

POLICIES = {
    "off": (),
    "mixup 0.2": ("views.mixup=0.2",),
    "mixup 1": ("views.mixup=1.0",),
    "cutmix 1": ("views.cutmix=1.0",),
}
MIXING = tuple(POLICIES)[1:]
METHODS = ("plain", "kd", "kr")


def main() -> None:
    """Print the accuracy of every method under every policy, and what mixing changes."""
    arguments = _arguments()
    torch.set_num_threads(1)
    print(f"{machine(torch.device('cpu'))}; commit {commit()}; {vars(arguments)}")
    with tempfile.TemporaryDirectory() as storage:
        off: dict[str, list[float]] = {}
        for name, setting in _settings(Path(storage), arguments):
            for method in arguments.methods:
                found = [_accuracy(setting, method, seed) for seed in range(arguments.seeds)]
                off.setdefault(method, found)
                _print(f"{name}, {method}", found, off[method])


def _settings(storage: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, Setting]]:
    shared = (
        f"data.source={arguments.source}",
        f"data.glyphs.num_train={arguments.num_train}",
        "data.glyphs.num_val=1000",
        f"ladder.capacities=['{arguments.capacity}']",
        f"train.num_epochs={arguments.epochs}",
        f"views.num_views={arguments.views}",
        "train.device=cpu",
    )
    weights = ""
    for name in ("off", *arguments.policies):
        setting = Setting(storage, *shared, *POLICIES[name], f"teacher.weights='{weights}'")
        weights = weights or str(Path(setting.prepared.teacher_path) / "teacher.safetensors")
        yield name, setting


def _accuracy(setting: Setting, method: str, seed: int) -> float:
    experiment = setting.with_changes(f"distill.method={method}", f"train.seed={seed}")
    dataset = setting.assets.dataset
    (size,) = ladder_sizes(Networks.resolve(experiment, dataset))
    training = build_training(
        experiment, setting.assets, size.width, Workers.alone(torch.device("cpu"))
    )
    while not training.finished:
        training.run_epoch()
    splits = [dataset.split(split) for split in ("val", "test")]
    held_out = [evaluate(training.student, dataset, split, training.workers) for split in splits]
    return 100.0 * sum(result["accuracy"] for result in held_out) / 2


def _print(what: str, found: list[float], off: list[float]) -> None:
    each = ", ".join(f"{accuracy:.2f}" for accuracy in found)
    line = f"{what}: {sum(found) / len(found):.2f} % ({each})"
    if found is not off and len(found) > 1:
        gains = [with_it - without for with_it, without in zip(found, off, strict=True)]
        test = stats.ttest_1samp(gains, 0.0).confidence_interval(0.95)
        mean = sum(gains) / len(gains)
        line += f"; {mean:+.2f} points, 95 % interval {test.low:+.2f} .. {test.high:+.2f}"
    print(line, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--source", choices=("digits", "glyphs"), default="digits")
    parser.add_argument("--num-train", type=int, default=1000, help="images of glyphs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--views", type=int, default=4, help="of every sample")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--policies", nargs="+", choices=MIXING, default=MIXING)
    parser.add_argument("--capacity", default="1/16", help="of the student, e.g. 1/16")
    return parser.parse_args()


if __name__ == "__main__":
    main()
