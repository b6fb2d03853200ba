"""Measure the gain from images without labels: only a share of the digits is labelled.

Prints, and writes no file. Each seed draws other labelled images, and trains a teacher and its
students with them. Students take equally many steps with and without the unlabelled images. The
teacher learns from the labelled images, or (`--teacher all`) from all images with their labels,
like a teacher that is given with its weights.

    python benchmarks/unlabelled.py [--seeds 5] [--labelled 0.1] [--capacity 1/16] [--teacher all]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from parts.measuring import commit, machine
from scipy import stats

from krscale.config import DataConfig, Experiment, load
from krscale.data import prepare_data
from krscale.parallel import Workers
from krscale.progress import Progress
from krscale.setup.build import Assets, build_training
from krscale.setup.networks import Networks
from krscale.setup.prepare import Prepared, prepare
from krscale.setup.sizes import ladder_sizes
from krscale.setup.teacher import open_teacher
from krscale.training.loop import evaluate

METHODS = ("plain", "kd", "kr")
NUM_EPOCHS = 12
"""Passes over all training images, labelled or not: the default."""
TEACHER_EPOCHS = 300
Found = dict[tuple[str, str], list[float]]
"""Test accuracies in percent, one for each seed, by training data and method."""


def main() -> None:
    """Print the machine, every seed's accuracies, and their means, spreads and differences."""
    arguments = _arguments()
    torch.set_num_threads(1)
    print(f"{machine(torch.device('cpu'))}; commit {commit()}")
    found: Found = {}
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            for name, accuracy in _of_seed(Path(folder), arguments, seed).items():
                found.setdefault(name, []).append(100.0 * accuracy)
        shown = ", ".join(f"{' '.join(name)} {values[-1]:.2f}" for name, values in found.items())
        print(f"seed {seed}: {shown}", flush=True)
    for name, values in found.items():
        spread = stdev(values) if len(values) > 1 else 0.0
        print(f"{' '.join(name)}: {fmean(values):.2f} % on test, deviation {spread:.2f}")
    for method in METHODS[1:]:
        _print_gain(f"{method}, with minus without", found, ("with", method), ("without", method))
        up = ("with, labels weighed up,", method)
        _print_gain(
            f"{method}, with, labels weighed up, minus without", found, up, ("without", method)
        )


def _of_seed(
    folder: Path, arguments: argparse.Namespace, seed: int
) -> dict[tuple[str, str], float]:
    num_labelled, num_all = _write_data(folder, arguments.labelled, seed)
    common = [
        f"storage_path={folder}",
        "tracking.enabled=false",
        f"teacher.seed={seed}",
        f"ladder.capacities=['{arguments.capacity}']",
        f"train.seed={1000 + seed}",
    ]
    if arguments.teacher == "all":
        taught_by = _prepared(load(None, common)).teacher_path
        common += [f"teacher.weights={taught_by}/teacher.safetensors"]
    else:
        common += [f"teacher.num_epochs={TEACHER_EPOCHS}"]
    common += ["data.source=numpy", f"data.path={folder / 'labelled.npz'}"]
    size = Experiment().train.global_batch_size
    as_many = round(NUM_EPOCHS * -(-num_all // size) / -(-num_labelled // size))
    unlabelled = f"data.unlabelled={folder / 'unlabelled.npz'}"
    weight = f"distill.ce_weight={num_all / num_labelled}"
    ways = {
        "with": (unlabelled, f"train.num_epochs={NUM_EPOCHS}"),
        "with, labels weighed up,": (unlabelled, weight, f"train.num_epochs={NUM_EPOCHS}"),
        "without": (f"train.num_epochs={as_many}",),
        "without, as many epochs,": (f"train.num_epochs={NUM_EPOCHS}",),
    }
    found: dict[tuple[str, str], float] = {}
    for way, settings in ways.items():
        experiment = load(None, [*common, *settings])
        prepared = _prepared(experiment)
        assets = Assets.open(prepared)
        # The same teacher, with the unlabelled images and without.
        found["the", "teacher"] = _teacher(experiment, assets, Path(prepared.teacher_path))
        for method in METHODS:
            if method != "plain" or way.startswith("without"):  # plain does not use them
                found[way, method] = _student(experiment, assets, method)
    return found


def _prepared(experiment: Experiment) -> Prepared:
    with Progress(quiet=True, planned={}) as progress:
        return prepare(experiment, progress)


def _teacher(experiment: Experiment, assets: Assets, path: Path) -> float:
    model = open_teacher(experiment, assets.dataset, path).tapped.model
    return _accuracy(model, assets)


def _student(experiment: Experiment, assets: Assets, method: str) -> float:
    given = experiment.model_copy(
        update={"distill": experiment.distill.model_copy(update={"method": method})}
    )
    (size,) = ladder_sizes(Networks.resolve(given, assets.dataset))
    training = build_training(given, assets, size.width, Workers.alone(torch.device("cpu")))
    while not training.finished:
        training.run_epoch()
    return _accuracy(training.student, assets)


def _accuracy(model: torch.nn.Module, assets: Assets) -> float:
    test = assets.dataset.split("test")
    return evaluate(model, assets.dataset, test, Workers.alone(torch.device("cpu")))["accuracy"]


def _write_data(folder: Path, share: float, seed: int) -> tuple[int, int]:
    """Write the digits, a share of train with labels; return the numbers of these, and of all."""
    dataset = prepare_data(DataConfig(), folder / "cache")
    train, generator = dataset.split("train"), np.random.default_rng(seed)
    kept = []
    for label in range(dataset.num_classes):
        of_class = generator.permutation(np.flatnonzero(train.labels == label))
        kept.append(of_class[: max(1, round(share * len(of_class)))])
    labelled = np.sort(np.concatenate(kept))
    rest = np.setdiff1d(np.arange(len(train)), labelled)
    arrays = {"train_images": train.images[labelled], "train_labels": train.labels[labelled]}
    for name in ("val", "test"):
        split = dataset.split(name)  # type: ignore[arg-type]
        arrays |= {f"{name}_images": split.images, f"{name}_labels": split.labels}
    np.savez(folder / "labelled.npz", **arrays)  # type: ignore[arg-type]
    np.savez(folder / "unlabelled.npz", images=train.images[rest])
    return len(labelled), len(train)


def _print_gain(text: str, found: Found, one: tuple[str, str], other: tuple[str, str]) -> None:
    gains = [a - b for a, b in zip(found[one], found[other], strict=True)]
    interval = ""
    if len(gains) > 1:
        test = stats.ttest_1samp(gains, 0.0).confidence_interval(0.95)
        interval = f", 95 % interval {test.low:+.2f} .. {test.high:+.2f}"
    print(f"{text}: {fmean(gains):+.2f} points{interval}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labelled", type=float, default=0.1, help="share of train with labels")
    parser.add_argument("--capacity", default="1/16", help="of the student, e.g. 1/16")
    parser.add_argument("--teacher", choices=("labelled", "all"), default="labelled")
    return parser.parse_args()


if __name__ == "__main__":
    main()
