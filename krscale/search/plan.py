"""`--dry-run`: describe what a search would do, without doing any of it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch

from krscale.config import Experiment, TrainConfig
from krscale.parallel import Workers
from krscale.redaction import redact_all
from krscale.search.check import CheckedSearch, check_search, check_settings, known_latencies
from krscale.setup.plan import ExperimentPlan, describe
from krscale.setup.prepare import pick_device
from krscale.setup.sizes import StudentSize
from krscale.training.precision import resolve_precision


def describe_plan(experiment: Experiment) -> str:
    """Return the resolved experiment, every size's model, and the planned work, as text."""
    check_settings(experiment)
    plan = describe(experiment)
    experiment = plan.networks.experiment  # with the taps that resolving found
    said: list[str] = []
    with known_latencies(experiment) as latencies:
        checked = check_search(plan.networks, plan.sizes, said.append, latencies)
    objectives = experiment.search.objectives
    lines = [json.dumps(redact_all(experiment.model_dump(mode="json")), indent=2), "", "Models:"]
    lines += _models(plan, checked.sizes)
    lines += [f"  {line}" for line in (*plan.networks.describe_inputs(), *said)]
    if len(objectives) > 1:
        lines += ["", f"Objectives of every study: {', '.join(objectives)}"]
    lines += ["", "Search space:", *_space(checked)]
    lines += ["", "Planned work:", _trials(experiment, checked), _work(plan, checked)]
    lines += _workers(experiment)
    lines += [f"  precision: {_precision(experiment.train)}"]
    lines += [f"  run folder: {experiment.run_path}"]
    if plan.notes:
        lines += ["", "Data:", *(f"  {note}" for note in plan.notes)]
    return "\n".join(lines)


def _models(plan: ExperimentPlan, sizes: Sequence[StudentSize]) -> list[str]:
    """Describe the teacher and the students, with their sizes."""
    experiment = plan.networks.experiment
    lines = [
        f"  teacher          {experiment.teacher.model} width {experiment.teacher.width}: "
        f"{plan.teacher_parameters:,} parameters, {plan.teacher_flops:,} FLOPs"
    ]
    named = {student.name: student.model for student in experiment.ladder.students}
    for size in sizes:
        model = named.get(size.capacity, experiment.student.model)
        lines.append(
            f"  size {size.capacity:<11} {model} width {size.width}: {size.num_parameters:,} "
            f"parameters ({_share(size.num_parameters, plan.teacher_parameters)}), "
            f"{size.flops:,} FLOPs"
        )
    return lines


def _share(num_parameters: int, of: int) -> str:
    """Return the size of a student relative to the teacher's.

    Example:
        >>> _share(1_000, 16_000), _share(24_000, 16_000)
        ('1/16', '1.5 times the teacher')
    """
    if num_parameters > of:
        return f"{num_parameters / of:.1f} times the teacher"
    return f"1/{of / num_parameters:.0f}"


def _space(checked: CheckedSearch) -> list[str]:
    """Describe the distribution of every field that is searched."""
    fields = [
        f"  {method}: {path} ~ {text}"
        for method, found in checked.space.describe().items()
        for path, text in found.items()
    ]
    return [*fields, *(f"  {note}" for note in checked.notes)]


def _work(plan: ExperimentPlan, checked: CheckedSearch) -> str:
    """Estimate the computation of the students, at most, and of the teacher."""
    experiment = plan.networks.experiment
    images = sum(
        (num_tuned + experiment.search.num_final_seeds) * plan.num_images(method)
        for method, num_tuned in checked.planned.items()
    )
    # A backward pass costs about twice the forward: three forwards a sample.
    work = 3 * experiment.train.num_epochs * images * sum(size.flops for size in checked.sizes)
    num_views, num_stored = experiment.views.num_views, plan.num_train + plan.num_unlabelled
    store = num_views * num_stored * plan.teacher_flops
    return (
        f"  students: at most {work / 1e12:.2f} TFLOP; teacher's knowledge, once: "
        f"{store / 1e12:.3f} TFLOP ({num_views} views of {num_stored:,} images)"
    )


def _trials(experiment: Experiment, checked: CheckedSearch) -> str:
    """Count trials and final trainings, by method if a grid makes the studies differ."""
    num_sizes = len(checked.sizes)
    methods_by_count: dict[int, list[str]] = {}
    for method, count in checked.planned.items():
        methods_by_count.setdefault(count, []).append(method)
    parts = [
        f"{len(methods) * num_sizes} studies x {count} trials"
        + (f" ({', '.join(methods)})" if len(methods_by_count) > 1 else "")
        for count, methods in methods_by_count.items()
    ]
    num_trials = sum(checked.planned.values()) * num_sizes
    num_finals = len(experiment.search.methods) * num_sizes * experiment.search.num_final_seeds
    return (
        f"  {' + '.join(parts)} = {num_trials} trials, at most "
        f"{experiment.train.num_epochs} epochs each; then {num_finals} final trainings of the "
        "winners"
    )


def _workers(experiment: Experiment) -> list[str]:
    """Describe what a trial reserves on the cluster, if it has several workers."""
    train, cpus = experiment.train, experiment.search.cpus_per_trial
    if train.most_workers == 1:
        return []
    number = f"{train.num_workers}"
    if train.most_workers > train.num_workers:
        number += f" to {train.most_workers}, as there is room,"
    gpus = experiment.search.gpus_per_trial
    of_gpus = "a GPU if there are enough" if gpus == "auto" else f"{gpus:g} GPU"
    return [f"  workers: {number} share each trial, each with {cpus:g} CPU and {of_gpus}"]


def _precision(train: TrainConfig) -> str:
    """Return the precision of training, as far as this machine can determine it."""
    if train.precision != "auto":
        return train.precision
    if train.device == "cuda" and not torch.cuda.is_available():
        return "auto: bf16 where the GPU that trains computes it natively; none is here to tell"
    found = resolve_precision("auto", Workers.alone(pick_device(train.device)))
    return f"auto: {found} on this machine"
