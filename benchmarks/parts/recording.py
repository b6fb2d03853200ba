"""Record real learning curves at random points of the search space, for experiments on searching.

A search over recorded curves costs nothing, so that many can be compared; `surrogate.py` predicts
curves between the points.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import torch

from krscale.errors import NonFiniteError
from krscale.files import write_atomic
from krscale.parallel import Workers
from krscale.search.space.check import fitting_space
from krscale.setup.build import build_training, trial_experiment
from krscale.setup.networks import Networks
from krscale.setup.sizes import ladder_sizes
from parts.measuring import ROOT, commit
from parts.setting import Setting

RECORDED = ROOT / "benchmarks" / "results" / "learning_curves.json"
METHOD = "kr"
CAPACITIES = ("1/256", "1/64", "1/16")
TASK = (
    "data.source=digits",
    f"ladder.capacities={list(CAPACITIES)}",
    "teacher.width=16",
    "teacher.num_epochs=12",
    "views.num_views=2",
    "train.num_epochs=6",
    "train.device=cpu",
    "search.grace_epochs=2",
    f"search.methods=['{METHOD}']",
    "search.space=kr",
)
"""Small enough that hundreds of trainings take minutes, and short enough that students differ."""


def record_curves(storage: Path, num_points: int, minutes: float, seed: int = 0) -> None:
    """Train at random points, the same ones at every size, until there are enough of them.

    An earlier recording is continued.

    Args:
        storage: Of data, teacher and store.
        num_points: Total number of points of the space.
        minutes: Time after which no training begins.
        seed: Of the points.
    """
    torch.set_num_threads(1)
    setting = Setting(storage, *TASK)
    sizes = ladder_sizes(Networks.resolve(setting.experiment, setting.assets.dataset))
    recorded = read_recorded() if RECORDED.exists() else _empty(setting, seed)
    deadline = time.perf_counter() + 60 * minutes
    for number, values in enumerate(_points(setting, num_points, seed)):
        for size in sizes:
            rows = recorded["sizes"].setdefault(size.capacity, [])
            if number < len(rows):
                continue
            if time.perf_counter() > deadline:
                return
            rows.append(_train(setting, size.width, values))
            _write(recorded)
        if number % 10 == 0:
            print(f"  recorded {number + 1} points", flush=True)


def read_recorded() -> dict[str, Any]:
    """Return what `record_curves` wrote."""
    content: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return content


def _points(setting: Setting, num_points: int, seed: int) -> Iterator[dict[str, Any]]:
    space = fitting_space(Networks.resolve(setting.experiment, setting.assets.dataset))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(num_points):
        yield space.suggest(METHOD, study.ask())


def _train(setting: Setting, width: int, values: dict[str, Any]) -> dict[str, Any]:
    experiment = trial_experiment(setting.experiment, METHOD, values, seed=0)
    training = build_training(experiment, setting.assets, width, Workers.alone())
    curve: list[float] = []
    started = time.process_time()
    try:
        while not training.finished:
            curve.append(round(training.run_epoch()["val/accuracy"], 4))
    except NonFiniteError:
        curve = []
    seconds = time.process_time() - started
    return {"values": values, "curve": curve, "cpu_seconds": round(seconds, 3)}


def _empty(setting: Setting, seed: int) -> dict[str, Any]:
    facts = setting.assets.teacher
    return {
        "command": "python benchmarks/search.py --parts record",
        "commit": commit(),
        "settings": list(TASK),
        "seed": seed,
        "teacher_val_accuracy": round(facts.val_accuracy, 4),
        "sizes": {},
    }


def _write(recorded: dict[str, Any]) -> None:
    """Write the records with one row per line."""
    head = {key: value for key, value in recorded.items() if key != "sizes"}
    lines = [f'"{key}": {json.dumps(value)},' for key, value in head.items()]
    tables = []
    for capacity, rows in recorded["sizes"].items():
        body = ",\n".join(json.dumps(row) for row in rows)
        tables.append(f'"{capacity}": [\n{body}\n]')
    text = "{\n" + "\n".join(lines) + '\n"sizes": {\n' + ",\n".join(tables) + "\n}\n}\n"

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    write_atomic(RECORDED, write)
