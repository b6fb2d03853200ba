"""(a) The same trials run by krscale, by Ray Tune as in its documentation, and by bare Optuna.

All train the same students for the same epochs with the same loop. The other two run the teacher in
every step, since neither stores its outputs. A trial on Ray uses one thread; the single process
uses all cores. Nothing stops early, so that the work is the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from krscale.config import Experiment
from krscale.parallel import Workers
from krscale.search.space.space import SearchSpace
from krscale.setup.build import Assets, build_training, trial_experiment
from krscale.setup.prepare import Prepared
from krscale.setup.sizes import StudentSize
from krscale.setup.teacher import open_teacher
from krscale.training.loop import Training
from parts.online import Online

METHOD = "kd"


def online_training(
    experiment: Experiment, prepared: Prepared, width: int, values: Mapping[str, Any]
) -> Training:
    """Build a training of KD that runs the teacher in every step, from prepared files."""
    assets = Assets.open(prepared)
    own = trial_experiment(experiment, METHOD, dict(values), seed=0)
    training = build_training(own, assets, width, Workers.alone())
    teacher = open_teacher(experiment, assets.dataset, Path(prepared.teacher_path))
    training.loader.store = None
    training.forward = Online(training.learner, teacher, last_tap_only=True)
    return training


def run_stock_ray(
    experiment: Experiment,
    prepared: Prepared,
    size: StudentSize,
    space: SearchSpace,
    num_trials: int,
) -> float:
    """Return the wall seconds of OptunaSearch, ASHAScheduler and a function trainable."""

    def train(config: dict[str, Any]) -> None:
        training = online_training(experiment, prepared, size.width, config["values"])
        while not training.finished:
            tune.report({"accuracy": training.run_epoch()["val/accuracy"]})

    num_epochs = experiment.train.num_epochs
    tuner = tune.Tuner(
        tune.with_resources(lambda config: train({"values": config}), {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(
                dict(space.by_method[METHOD]), metric="accuracy", mode="max", seed=0
            ),
            scheduler=ASHAScheduler(
                metric="accuracy", mode="max", max_t=num_epochs, grace_period=num_epochs
            ),
            num_samples=num_trials,
        ),
        run_config=tune.RunConfig(name="stock", storage_path=str(experiment.run_path), verbose=0),
    )
    started = time.perf_counter()
    results = tuner.fit()
    seconds = time.perf_counter() - started
    if results.errors:
        raise RuntimeError(results.errors[0])
    return seconds


def run_optuna_loop(
    experiment: Experiment,
    prepared: Prepared,
    size: StudentSize,
    space: SearchSpace,
    num_trials: int,
) -> float:
    """Return the wall seconds of `study.optimize` with a MedianPruner, in this process."""
    num_epochs = experiment.train.num_epochs

    def objective(trial: optuna.Trial) -> float:
        values = space.suggest(METHOD, trial)
        training = online_training(experiment, prepared, size.width, values)
        accuracy = 0.0
        while not training.finished:
            accuracy = training.run_epoch()["val/accuracy"]
            trial.report(accuracy, training.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return accuracy

    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=num_epochs),
    )
    return _timed(lambda: study.optimize(objective, n_trials=num_trials))


def run_bare_students(
    experiment: Experiment, prepared: Prepared, size: StudentSize, num_trials: int
) -> float:
    """Return the wall seconds of `num_trials` plain trainings in a row, which any search needs."""
    assets = Assets.open(prepared)
    own = trial_experiment(experiment, "plain", {}, seed=0)

    def train_all() -> None:
        for _ in range(num_trials):
            training = build_training(own, assets, size.width, Workers.alone())
            while not training.finished:
                training.run_epoch()

    return _timed(train_all)


def with_threads(num_threads: int, run: Callable[[], float]) -> float:
    """Run a function with `num_threads` threads in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        return run()
    finally:
        torch.set_num_threads(before)


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
