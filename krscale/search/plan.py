"""`--dry-run`: what a search would do, said without doing any of it."""

from __future__ import annotations

import json

import torch

from krscale.config import Experiment, TrainConfig
from krscale.data import describe_data
from krscale.parallel import Workers
from krscale.precision import resolve_precision
from krscale.search.space.check import fitting_space
from krscale.setup.assemble import describe, pick_device


def describe_plan(experiment: Experiment) -> str:
    """Return the resolved experiment, every size's model, and the planned work, as text."""
    plan = describe(experiment)
    space = fitting_space(experiment, describe_data(experiment.data, experiment.cache_path))
    config, train = experiment.search, experiment.train
    num_studies = len(config.methods) * len(plan.sizes)
    num_trials = num_studies * config.trials_per_size
    num_finals = num_studies * config.num_final_seeds
    lines = [json.dumps(experiment.model_dump(mode="json"), indent=2), "", "Models:"]
    lines.append(
        f"  teacher          {experiment.teacher.model} width {experiment.teacher.width}: "
        f"{plan.teacher_parameters:,} parameters, {plan.teacher_flops:,} FLOPs"
    )
    for size in plan.sizes:
        share = size.num_parameters / plan.teacher_parameters
        lines.append(
            f"  size {size.capacity:<11} {experiment.student.model} width {size.width}: "
            f"{size.num_parameters:,} parameters (1/{1 / share:.0f}), {size.flops:,} FLOPs"
        )
    if len(config.objectives) > 1:
        lines += ["", f"Objectives of every study: {', '.join(config.objectives)}"]
    lines += ["", "Search space:"]
    for method, fields in space.describe().items():
        lines += [f"  {method}: {path} ~ {text}" for path, text in fields.items()]
    # A backward pass costs about twice the forward: three forwards a sample.
    epochs = len(config.methods) * (config.trials_per_size + config.num_final_seeds)
    work = 3 * train.num_epochs * plan.num_train * sum(r.flops for r in plan.sizes) * epochs
    store = experiment.views.num_views * plan.num_train * plan.teacher_flops
    lines += [
        "",
        "Planned work:",
        f"  {num_studies} studies x {config.trials_per_size} trials = {num_trials} trials, at most "
        f"{train.num_epochs} epochs each; then {num_finals} final trainings of the winners",
        f"  students: at most {work / 1e12:.2f} TFLOP; teacher's knowledge, once: "
        f"{store / 1e12:.3f} TFLOP ({experiment.views.num_views} views of "
        f"{plan.num_train:,} images)",
        f"  precision: {_precision(train)}",
        f"  run folder: {experiment.run_path}",
    ]
    return "\n".join(lines)


def _precision(train: TrainConfig) -> str:
    """Return what students train in, as far as this machine can tell."""
    if train.precision != "auto":
        return train.precision
    if train.device == "cuda" and not torch.cuda.is_available():
        return "auto: bf16 where the GPU that trains computes it natively; none is here to tell"
    found = resolve_precision("auto", Workers.alone(pick_device(train.device)))
    return f"auto: {found} on this machine"
