"""`--dry-run`: what a search would do, said without doing any of it."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

from krscale.config import Experiment, TrainConfig
from krscale.parallel import Workers
from krscale.redaction import redact_all
from krscale.search.check import check_search
from krscale.setup.plan import describe
from krscale.setup.prepare import pick_device
from krscale.training.precision import resolve_precision


def describe_plan(experiment: Experiment) -> str:
    """Return the resolved experiment, every size's model, and the planned work, as text."""
    plan = describe(experiment)
    experiment = plan.networks.experiment  # with the taps that were found
    config, train = experiment.search, experiment.train
    said: list[str] = []
    checked = check_search(plan.networks, plan.sizes, said.append)
    sizes, per_study = checked.sizes, checked.planned
    num_studies = len(config.methods) * len(sizes)
    num_trials = sum(per_study.values()) * len(sizes)
    num_finals = num_studies * config.num_final_seeds
    lines = [json.dumps(redact_all(experiment.model_dump(mode="json")), indent=2), "", "Models:"]
    lines.append(
        f"  teacher          {experiment.teacher.model} width {experiment.teacher.width}: "
        f"{plan.teacher_parameters:,} parameters, {plan.teacher_flops:,} FLOPs"
    )
    named = {student.name: student.model for student in experiment.ladder.students}
    models = {s.capacity: named.get(s.capacity, experiment.student.model) for s in sizes}
    for size in sizes:
        share = size.num_parameters / plan.teacher_parameters
        lines.append(
            f"  size {size.capacity:<11} {models[size.capacity]} width {size.width}: "
            f"{size.num_parameters:,} parameters (1/{1 / share:.0f}), {size.flops:,} FLOPs"
        )
    lines += [f"  {line}" for line in (*plan.networks.describe_inputs(), *said)]
    if len(config.objectives) > 1:
        lines += ["", f"Objectives of every study: {', '.join(config.objectives)}"]
    lines += ["", "Search space:"]
    for method, fields in checked.space.describe().items():
        lines += [f"  {method}: {path} ~ {text}" for path, text in fields.items()]
    lines += [f"  {note}" for note in checked.notes]
    # A backward pass costs about twice the forward: three forwards a sample.
    images = sum(
        (num_tuned + config.num_final_seeds) * plan.num_images(method)
        for method, num_tuned in per_study.items()
    )
    work = 3 * train.num_epochs * images * sum(r.flops for r in sizes)
    num_stored = plan.num_train + plan.num_unlabelled
    store = experiment.views.num_views * num_stored * plan.teacher_flops
    lines += [
        "",
        "Planned work:",
        f"  {_trials(per_study, len(sizes))} = {num_trials} trials, at most "
        f"{train.num_epochs} epochs each; then {num_finals} final trainings of the winners",
        f"  students: at most {work / 1e12:.2f} TFLOP; teacher's knowledge, once: "
        f"{store / 1e12:.3f} TFLOP ({experiment.views.num_views} views of "
        f"{num_stored:,} images)",
        *_workers(experiment),
        f"  precision: {_precision(train)}",
        f"  run folder: {experiment.run_path}",
    ]
    if plan.notes:
        lines += ["", "Data:", *(f"  {note}" for note in plan.notes)]
    return "\n".join(lines)


def _trials(per_study: Mapping[str, int], num_sizes: int) -> str:
    """Return the trials of all studies; by method where a grid makes them differ."""
    methods_by_count: dict[int, list[str]] = {}
    for method, count in per_study.items():
        methods_by_count.setdefault(count, []).append(method)
    parts = [
        f"{len(methods) * num_sizes} studies x {count} trials"
        + (f" ({', '.join(methods)})" if len(methods_by_count) > 1 else "")
        for count, methods in methods_by_count.items()
    ]
    return " + ".join(parts)


def _workers(experiment: Experiment) -> list[str]:
    """Say what a trial takes of the cluster, where it has several workers."""
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
    """Return what students train in, as far as this machine can tell."""
    if train.precision != "auto":
        return train.precision
    if train.device == "cuda" and not torch.cuda.is_available():
        return "auto: bf16 where the GPU that trains computes it natively; none is here to tell"
    found = resolve_precision("auto", Workers.alone(pick_device(train.device)))
    return f"auto: {found} on this machine"
