"""The folder of a finished search, made without Ray in seconds instead of minutes."""

from __future__ import annotations

from pathlib import Path

from krscale.config import Experiment, load, with_values
from krscale.models.capacity import latency_ms
from krscale.parallel import Workers
from krscale.progress import Progress
from krscale.report import Curve, CurveSize, MethodResult, TeacherRecord, find_pareto, write_curve
from krscale.runs.folder import run_folder, student_path
from krscale.runs.origin import git_commit
from krscale.setup.build import Assets, build_training
from krscale.setup.networks import Networks
from krscale.setup.prepare import prepare
from krscale.setup.sizes import StudentSize, ladder_sizes
from krscale.training.checkpoint import save_weights
from krscale.training.loop import evaluate, fit

METHODS = ("plain", "kr")
SEEDS = (1000, 1001)
BEST = {"train.learning_rate": 0.05}
SETTINGS = (
    "name=tiny",
    "tracking.enabled=false",
    "teacher.width=8",
    "teacher.num_epochs=1",
    "distill.probe_grid=2",
    "views.num_views=2",
    "ladder.capacities=['1/16', '1/4']",
    "train.num_epochs=2",
    "search.methods=['plain', 'kr']",
    "search.num_final_seeds=2",
)


def make_finished_run(storage: Path, *settings: str) -> Path:
    """Train two seeds of two methods at two sizes for two epochs each; return the run's folder."""
    experiment = load(None, [*SETTINGS, f"storage_path={storage}", *settings])
    with Progress(quiet=True, planned={}) as progress, run_folder(experiment, {}) as folder:
        prepared = prepare(experiment, progress)
    assets = Assets.open(prepared)
    sizes = tuple(
        _size(experiment, assets, size)
        for size in ladder_sizes(Networks.resolve(experiment, assets.dataset))
    )
    facts = prepared.teacher
    curve = Curve(
        name=experiment.name,
        commit=git_commit(),
        data={"source": "digits", "fingerprint": assets.dataset.fingerprint, "num_test": 450},
        teacher=TeacherRecord(
            model=facts.model, width=facts.width, num_parameters=facts.num_parameters,
            flops=facts.flops, val_accuracy=facts.val_accuracy, test_accuracy=facts.val_accuracy,
            fingerprint=facts.fingerprint,
        ),
        sizes=sizes,
        pareto=find_pareto(sizes),
    )  # fmt: skip
    write_curve(curve, folder)
    return folder


def _size(experiment: Experiment, assets: Assets, size: StudentSize) -> CurveSize:
    methods = {method: _method(experiment, assets, size, method) for method in METHODS}
    training = build_training(experiment, assets, size.width, Workers.alone())
    return CurveSize(
        capacity=size.capacity, width=size.width, num_parameters=size.num_parameters,
        flops=size.flops, latency_ms=latency_ms(training.student, assets.dataset.image_shape),
        methods=methods,
    )  # fmt: skip


def _method(experiment: Experiment, assets: Assets, size: CurveSize, method: str) -> MethodResult:
    val, test = [], []
    for seed in SEEDS:
        values = {**BEST, "distill.method": method, "train.seed": seed}
        training = build_training(
            with_values(experiment, values, "test"), assets, size.width, Workers.alone()
        )
        val.append(fit(training, lambda metrics: None)["val/accuracy"])
        split = assets.dataset.split("test")
        found = evaluate(training.student, assets.dataset, split, Workers.alone())
        test.append(found["accuracy"])
        save_weights(
            student_path(experiment.run_path, method, size.capacity, seed), training.student
        )
    return MethodResult.over_seeds(
        seeds=SEEDS, val_accuracies=val, test_accuracies=test, num_trials=2, num_pruned=0,
        num_failed=0, best=BEST,
    )  # fmt: skip
