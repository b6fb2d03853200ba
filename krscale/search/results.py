"""Turn finished studies into the curve; the test split is used here, once, at the very end."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from optuna.trial import TrialState
from torch import nn

from krscale.config import Experiment
from krscale.data import Split
from krscale.errors import UserError
from krscale.metrics import ACCURACY, VAL_ACCURACY
from krscale.parallel import Workers
from krscale.report import (
    Budgets,
    Cost,
    Curve,
    CurveSize,
    FrontTrial,
    MethodResult,
    Size,
    TeacherRecord,
    find_pareto,
    read_curve,
)
from krscale.runs.folder import student_path
from krscale.runs.origin import git_commit
from krscale.runs.weights import check_weights, rebuild_final
from krscale.search.studies.budgets import span_of
from krscale.search.studies.ladder import Ladder
from krscale.search.studies.objectives import front
from krscale.search.studies.retries import INTERRUPTED, SEED, Cause
from krscale.search.studies.study import FORBIDDEN
from krscale.search.studies.trial_spec import TuningKey
from krscale.setup.build import Assets, trial_experiment
from krscale.setup.network_builder import build_student
from krscale.setup.prepare import Prepared
from krscale.setup.sizes import StudentSize
from krscale.setup.teacher import open_teacher
from krscale.storage.run_mirror import gather
from krscale.training.checkpoint import load_weights
from krscale.training.loop import evaluate


def collect(ladder: Ladder, prepared: Prepared) -> Curve:
    """Test every final student once and return the curve.

    Args:
        ladder: A complete search.
        prepared: Paths of data and teacher.

    Raises:
        UserError: If there is no student to test because trials failed, with the first error.
    """
    _refuse_if_none_finished(ladder)
    experiment = ladder.experiment
    gather(ladder.run_path)
    assets = Assets.open(prepared)
    test = assets.dataset.split("test")
    sizes = tuple(
        _size(ladder, size, assets, test)
        for size in sorted(ladder.sizes.values(), key=lambda r: r.num_parameters)
    )
    curve = Curve(
        name=experiment.name,
        commit=git_commit(),
        data={
            "source": assets.dataset.source,
            "fingerprint": assets.dataset.fingerprint,
            **{f"num_{split}": n for split, n in assets.dataset.num_samples.items()},
            **_without_labels(assets),
        },
        teacher=_teacher(experiment, prepared, assets, test),
        sizes=sizes,
        pareto=find_pareto(sizes),
        cost=_cost(ladder),
        budgets=Budgets(**ladder.config.model_dump(include=set(Budgets.model_fields))),
    )
    return _with_former_commit(curve, ladder.run_path)


def _with_former_commit(curve: Curve, run_path: Path) -> Curve:
    """Return the curve with the commit of the former one, if this start has trained no student.

    Then the former curve is still there, and has the same results.
    """
    try:
        former = read_curve(run_path)
    except UserError:  # there is none, or it cannot be read
        return curve
    same = _results(former) == _results(curve)
    return curve.model_copy(update={"commit": former.commit}) if same else curve


def _results(curve: Curve) -> dict[tuple[str, str], tuple[tuple[float, ...], ...]]:
    return {
        (size.capacity, method): (found.seeds, found.val_accuracies, found.test_accuracies)
        for size in curve.sizes
        for method, found in size.methods.items()
    }


def _refuse_if_none_finished(ladder: Ladder) -> None:
    """Raise, at every start, the error that `run_search` raised when the last trial failed."""
    if any(study.winner() for study in ladder.tuning.values()):
        return
    ended = (trial for key in ladder.tuning for trial in ladder.counted(key))
    failed = [trial for trial in ended if trial.state is TrialState.FAIL]
    if not failed:  # no student was allowed
        return
    first = min(failed, key=lambda trial: trial.datetime_complete or datetime.max)
    raise UserError(
        f"search: no trial finished. The first error was:\n{first.user_attrs.get('error', '')}\n"
        f"Once its cause is gone, more trials (--set search.trials_per_size=...) go on here. Or "
        f"choose another name (--set name=...)."
    )


def _without_labels(assets: Assets) -> dict[str, Any]:
    """Return number and digest of the images without labels; empty if there are none."""
    taught = assets.taught
    if taught is None:
        return {}
    return {"num_unlabelled": taught.num_unlabelled, "unlabelled": taught.unlabelled}


def _cost(ladder: Ladder) -> Cost | None:
    studies = ladder.optuna_studies.values()
    trials = [trial for study in studies for trial in study.get_trials(deepcopy=False)]
    ran = (trial for trial in trials if FORBIDDEN not in trial.user_attrs)  # the others never ran
    spans = [(trial, span) for trial in ran if (span := span_of(trial)) is not None]
    if not spans:
        return None
    wall = max(end for _, (_, end) in spans) - min(start for _, (start, _) in spans)
    return Cost(
        num_trials=len(spans),
        wall_seconds=wall.total_seconds(),
        # Trials cut short by the end of a search are recorded at the next start: duration unknown.
        trial_seconds=sum(
            (end - start).total_seconds()
            for trial, (start, end) in spans
            if trial.user_attrs.get(INTERRUPTED) != Cause.SEARCH.value
        ),
    )


def _size(ladder: Ladder, size: StudentSize, assets: Assets, test: Split) -> CurveSize:
    return CurveSize(
        capacity=size.capacity,
        width=size.width,
        num_parameters=size.num_parameters,
        flops=size.flops,
        latency_ms=ladder.size_resolver.latency_ms(size.capacity, {}),
        methods={
            method: _method(ladder, method, size, assets, test) for method in ladder.config.methods
        },
    )


def _method(
    ladder: Ladder, method: str, size: StudentSize, assets: Assets, test: Split
) -> MethodResult:
    experiment = ladder.experiment
    key = TuningKey(method, size.capacity)
    tuned = ladder.counted(key)
    finals = ladder.finals[key.finals].complete()
    seeds = [int(trial.user_attrs[SEED]) for trial in finals]
    winner = ladder.winner(method, size.capacity)
    paths = [student_path(experiment.run_path, method, size.capacity, seed) for seed in seeds]
    best = dict(winner.params) if winner else {}
    settings = {**best, "distill.capacity": size.capacity}
    architecture = trial_experiment(experiment, method, settings, experiment.train.seed)
    own = _own_size(ladder, size, best)
    width = own.width if own else size.width
    student = build_student(architecture, assets.dataset, width, fresh=True)
    return MethodResult.over_seeds(
        seeds=seeds,
        val_accuracies=[float(trial.user_attrs[VAL_ACCURACY]) for trial in finals],
        test_accuracies=[_test(student, assets, path, test) for path in paths],
        num_trials=len(tuned),
        num_pruned=sum(trial.state is TrialState.PRUNED for trial in tuned),
        num_failed=sum(trial.state is TrialState.FAIL for trial in tuned),
        best=best,
        size=own,
        ended_by=ladder.tuning[key].ended_by or None,
        front=_front(ladder, key),
    )


def _own_size(ladder: Ladder, size: StudentSize, best: dict[str, Any]) -> Size | None:
    """Return the own size of a winner whose architecture was searched; None if it has none."""
    resolver = ladder.size_resolver
    own, latency = resolver.size(size.capacity, best), resolver.latency_ms(size.capacity, best)
    # Two networks may differ in latency alone, as by their activations.
    if own == size and latency == resolver.latency_ms(size.capacity, {}):
        return None
    return Size(
        width=own.width,
        num_parameters=own.num_parameters,
        flops=own.flops,
        latency_ms=latency,
    )


def _front(ladder: Ladder, key: TuningKey) -> list[FrontTrial]:
    names = ladder.config.objectives
    if len(names) == 1:
        return []
    return [
        FrontTrial(
            number=trial.number,
            objectives=dict(zip(names, trial.values, strict=True)),
            settings=dict(trial.params),
        )
        for trial in front(ladder.optuna_studies[key])
    ]


def _test(student: nn.Module, assets: Assets, path: Path, test: Split) -> float:
    check_weights(path, rebuild_final(path))
    load_weights(path, student, where=str(path))
    workers = Workers.alone(torch.device("cpu"))
    return evaluate(student, assets.dataset, test, workers)[ACCURACY.name]


def _teacher(
    experiment: Experiment, prepared: Prepared, assets: Assets, test: Split
) -> TeacherRecord:
    facts = prepared.teacher
    teacher = open_teacher(experiment, assets.dataset, Path(prepared.teacher_path))
    workers = Workers.alone(torch.device("cpu"))
    return TeacherRecord(
        model=facts.model,
        width=facts.width,
        num_parameters=facts.num_parameters,
        flops=facts.flops,
        val_accuracy=facts.val_accuracy,
        test_accuracy=evaluate(teacher.tapped.model, assets.dataset, test, workers)[ACCURACY.name],
        fingerprint=facts.fingerprint,
    )
