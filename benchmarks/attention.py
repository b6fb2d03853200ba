"""Compare the two forms of attention transfer, each with its weight tuned at the same budget.

Both forms get the same seeds and the same number of weights, spaced evenly on a log scale over the
range that a search uses. The weight with the best mean validation accuracy is trained again with
fresh seeds. Weight 0, which leaves KD, is the reference. The test split is never read.

    python benchmarks/attention.py [--forms mean sum] [--weights 5] [--seeds 4]
        [--set train.num_epochs=16]

Prints a line per training and the table; writes nothing.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from parts.measuring import ROOT
from parts.setting import Setting

from krscale.config import search_ranges
from krscale.config.ranges import SearchRange
from krscale.parallel import Workers
from krscale.report.interval import half_width
from krscale.setup.build import build_training
from krscale.setup.networks import Networks
from krscale.setup.sizes import ladder_sizes
from krscale.training.loop import fit

WEIGHTS = {"mean": "distill.at_mean_weight", "sum": "distill.at_weight"}
TASK = (
    "data.glyphs.num_classes=20",
    "data.glyphs.num_train=2048",
    "data.glyphs.num_val=1000",
    "data.glyphs.num_test=64",
    "teacher.width=16",
    "teacher.num_epochs=16",
    "train.num_epochs=16",
    "views.num_views=4",
    "search.methods=['at']",
    "distill.method=at",
    "train.device=cpu",
)


def main() -> None:
    """Train every weight of both forms, then the best ones with fresh seeds, and print."""
    options = _arguments()
    torch.set_num_threads(1)
    setting = Setting(options.storage, *TASK, *options.set)
    compare = Comparison(setting)
    tuning, fresh = range(options.seeds), range(1000, 1000 + options.seeds)
    rows = [("kd", 0.0, compare.accuracies("mean", 0.0, fresh))]
    found: dict[str, list[float]] = {}
    for form in options.forms:
        tried = {w: mean(compare.accuracies(form, w, tuning)) for w in grid(form, options.weights)}
        print(f"{form}: " + ", ".join(f"{w:.3g}: {100 * a:.2f}" for w, a in tried.items()))
        best = max(tried, key=lambda weight, of=tried: of[weight])
        found[form] = compare.accuracies(form, best, fresh)
        rows.append((form, best, found[form]))
    print("form weight validation accuracy over fresh seeds, %")
    for name, weight, accuracies in rows:
        print(f"{name} {weight:.3g} {_with_half([100 * a for a in accuracies])}")
    if len(found) == len(WEIGHTS):
        pairs = zip(found["mean"], found["sum"], strict=True)
        print(f"mean minus sum, points: {_with_half([100 * (a - b) for a, b in pairs])}")


class Comparison:
    """Trainings of the second-smallest student of a setting."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.size = ladder_sizes(Networks.resolve(setting.experiment, setting.assets.dataset))[1]

    def accuracies(self, form: str, weight: float, seeds: Sequence[int]) -> list[float]:
        """Return the validation accuracy of each seed."""
        found = []
        for seed in seeds:
            experiment = self.setting.with_changes(
                f"distill.at_reduction={form}", f"{WEIGHTS[form]}={weight}", f"train.seed={seed}"
            )
            workers = Workers.alone(self.setting.device)
            training = build_training(experiment, self.setting.assets, self.size.width, workers)
            found.append(float(fit(training, lambda metrics: None)["val/accuracy"]))
            print(f"  {form} {weight:.3g} seed {seed}: {found[-1]:.4f}", flush=True)
        return found


def grid(form: str, count: int) -> list[float]:
    """Return weights spaced evenly on a log scale over a search's range, ends included."""
    declared = search_ranges()[WEIGHTS[form]]
    if not isinstance(declared, SearchRange) or isinstance(declared.high, str):
        raise TypeError(f"{WEIGHTS[form]} is not searched in a range of numbers")
    low, high = math.log(declared.low), math.log(declared.high)
    return [math.exp(low + (high - low) * i / (count - 1)) for i in range(count)]


def _with_half(values: Sequence[float]) -> str:
    half = half_width(list(values))
    return f"{mean(values):.2f}" + ("" if half is None else f" +- {half:.2f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forms", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--weights", type=int, default=5, help="weights of each form")
    parser.add_argument("--seeds", type=int, default=4, help="of the tuning, and fresh ones")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--storage", type=Path, default=ROOT / "runs" / "benchmarks")
    arguments = parser.parse_args()
    if arguments.weights < 2 or arguments.seeds < 2:
        parser.error("--weights and --seeds: at least 2")
    return arguments


if __name__ == "__main__":
    main()
