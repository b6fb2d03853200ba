"""(a) krscale against stock recipes, (b) its efficiency, (c) starts, (d) no-op trials."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import ray

from krscale.cluster.connect import connect
from krscale.config import Experiment
from krscale.parallel import Workers
from krscale.search.space.check import fitting_space
from krscale.setup.build import build_training
from krscale.setup.networks import Networks
from krscale.setup.sizes import StudentSize, ladder_sizes
from parts.contenders import (
    METHOD,
    run_bare_students,
    run_optuna_loop,
    run_stock_ray,
    with_threads,
)
from parts.noop_trial import NoopTrial
from parts.setting import Setting
from parts.steps import forward_ratio
from parts.watched_search import Watch, watched_search

NUM_WORKERS = 2
os.environ.setdefault("RAY_worker_niceness", "0")
# With Ray's default of 15, its workers yield to everything else on the machine. The loop in a
# single process does not, and the two are compared.
COMMON = (
    "teacher.num_epochs=1",
    "views.num_views=2",
    "train.device=cpu",
    "cluster.address=local",
    f"cluster.num_cpus={NUM_WORKERS}",
    "tracking.enabled=false",
    "ladder.capacities=['1/32']",
    "search.early_stopping=none",
)
LARGE = (
    *COMMON,
    "data.glyphs.image_size=32",
    "data.glyphs.num_train=448",
    "data.glyphs.num_val=128",
    "data.glyphs.num_test=64",
    "views.num_views=1",
    "teacher.width=128",
    "student.width_multiple=16",
    "train.num_epochs=4",
)
"""For the contenders. r is near 30 in seconds as well only if students are large enough that their
FLOPs dominate the time, and if their width suits the processor."""
LONG = (
    *COMMON,
    "data.glyphs.num_train=4096",
    "data.glyphs.num_val=256",
    "data.glyphs.num_test=64",
    "teacher.width=32",
    "train.num_epochs=24",
)
"""For the efficiency: whole trials of 20 seconds and more."""
LONG_TRIALS = 16


def measure_contenders(storage: Path, num_trials: int) -> dict[str, Any]:
    """Run the same trials with krscale, with stock Ray Tune and in a bare Optuna loop."""
    setting = _setting(storage, LARGE, METHOD, num_trials)
    size = ladder_sizes(Networks.resolve(setting.experiment, setting.assets.dataset))[0]
    space = fitting_space(Networks.resolve(setting.experiment, setting.assets.dataset))
    arguments = setting.experiment, setting.prepared, size, space, num_trials
    timed = max(1, num_trials // 2)  # all of them are alike
    bare = run_bare_students(*arguments[:3], timed) * num_trials / timed
    seconds = {"bare_students": bare}
    print(f"  {seconds}", flush=True)
    connect(setting.experiment.cluster)
    try:
        watches = [_product(storage, setting, (size,))]
        seconds["stock_ray"] = run_stock_ray(*arguments)
        print(f"  {seconds}", flush=True)
        # Once more, so that a temporary slowdown of the machine does not affect one side alone.
        watches.append(_product(storage, setting, (size,)))
    finally:
        ray.shutdown()
    seconds["optuna_loop"] = with_threads(NUM_WORKERS, lambda: run_optuna_loop(*arguments))
    seconds["krscale"] = statistics.mean(watch.wall for watch in watches)
    r = setting.assets.teacher.flops / size.flops
    r_seconds = forward_seconds_ratio(setting, size)
    print(
        f"  {seconds}, r {r:.1f} ({r_seconds:.1f}), gaps {[watch.gaps for watch in watches]}",
        flush=True,
    )
    return {
        "stock_ray_over_krscale": round(seconds["stock_ray"] / seconds["krscale"], 2),
        "optuna_loop_over_krscale": round(seconds["optuna_loop"] / seconds["krscale"], 2),
        "contenders": {
            "r": round(r, 1),
            "r_seconds": round(r_seconds, 1),
            "bound": round((3 + r) / 3, 1),
            "bound_seconds": round((3 + r_seconds) / 3, 1),
            "teacher": f"resnet width {setting.assets.teacher.width}",
            "num_trials": num_trials,
            "num_epochs": setting.experiment.train.num_epochs,
            "width_multiple": setting.experiment.student.width_multiple,
            "student": f"resnet width {size.width} ({size.num_parameters:,} parameters)",
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
            "krscale_each": [round(watch.wall, 1) for watch in watches],
            "gaps_s": [round(gap, 3) for watch in watches for gap in watch.gaps],
        },
    }


def measure_efficiency(storage: Path) -> dict[str, Any]:
    """Return the share of the workers' time that is spent in training steps, and trial starts."""
    setting = _setting(storage, LONG, METHOD, LONG_TRIALS)
    sizes = ladder_sizes(Networks.resolve(setting.experiment, setting.assets.dataset))
    connect(setting.experiment.cluster)
    try:
        watch = _product(storage, setting, sizes)
    finally:
        ray.shutdown()
    worker_seconds = NUM_WORKERS * watch.wall
    # Ray's single start and the imports of the workers come before the first step.
    first = min(watch.begun.values())
    last = max(watch.begun[name] + length for name, length in watch.lengths.items())
    in_steps = sum(watch.steps.values())
    print(f"  {watch}", flush=True)
    return {
        "efficiency": round(in_steps / worker_seconds, 3),
        "trial_start_s": round(statistics.median(watch.gaps), 3),
        "long_trials": {
            "num_trials": len(watch.lengths),
            "trial_seconds": [round(length, 1) for length in watch.lengths.values()],
            "gaps_s": [round(gap, 3) for gap in watch.gaps],
            "wall_s": round(watch.wall, 1),
            "efficiency_from_first_step": round(in_steps / (NUM_WORKERS * (last - first)), 3),
            "of_trials_in_steps": round(in_steps / sum(watch.lengths.values()), 3),
        },
    }


def measure_noop(storage: Path, num_trials: int) -> dict[str, Any]:
    """Return the no-op trials per second through searcher, journal and Tune."""
    capacities = ["1/128", "1/64", "1/32", "1/16"]
    methods = ["plain", "kd"]
    per_study = num_trials // (len(capacities) * len(methods))
    setting = _setting(
        storage, LONG, "plain", per_study, f"ladder.capacities={capacities}",
        f"search.methods={methods}", "train.num_epochs=1",
    )  # fmt: skip
    sizes = ladder_sizes(Networks.resolve(setting.experiment, setting.assets.dataset))
    connect(setting.experiment.cluster)
    try:
        before = time.process_time()
        watch = _product(storage, setting, sizes, NoopTrial)
        cpu = time.process_time() - before
    finally:
        ray.shutdown()
    return {
        "noop_trials_per_s": round(len(watch.lengths) / watch.wall, 2),
        "noop": {
            "num_trials": len(watch.lengths),
            "num_studies": len(capacities) * len(methods),
            "wall_s": round(watch.wall, 1),
            "driver_cpu_ms_per_trial": round(1e3 * cpu / len(watch.lengths), 1),
            "ray_seconds_per_trial": round(cpu / len(watch.lengths), 4),
        },
    }


def forward_seconds_ratio(setting: Setting, size: StudentSize) -> float:
    """Return r in seconds: the teacher's over the student's forward on this machine."""
    training = build_training(setting.experiment, setting.assets, size.width, Workers.alone())
    return forward_ratio(training, setting.teacher(), time.process_time)


def _setting(
    storage: Path, task: tuple[str, ...], method: str, num_trials: int, *changes: str
) -> Setting:
    return Setting(
        storage, *task, f"search.methods=['{method}']", f"search.trials_per_size={num_trials}",
        *changes,
    )  # fmt: skip


def _product(
    storage: Path, setting: Setting, sizes: tuple[StudentSize, ...], trainable: type | None = None
) -> Watch:
    experiment: Experiment = setting.experiment
    folder = storage / "search"
    shutil.rmtree(folder, ignore_errors=True)
    experiment = experiment.model_copy(update={"name": "search"})
    space = fitting_space(Networks.resolve(experiment, setting.assets.dataset))
    watch = watched_search(folder, experiment, setting.prepared, sizes, space, trainable)
    print(f"  krscale: {watch.wall:.1f} s, {len(watch.lengths)} trials", flush=True)
    return watch
