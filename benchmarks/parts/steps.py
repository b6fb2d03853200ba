"""(a) The step: a student alone, with the store, and with the teacher run in every step."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from krscale.parallel import Workers
from krscale.setup.build import build_training
from krscale.setup.networks import Networks
from krscale.setup.sizes import StudentSize, ladder_sizes
from krscale.setup.teacher import LoadedTeacher
from krscale.training.loop import Training
from parts.measuring import Clock, clock_for, interleave, ratio, ratio_interval
from parts.online import Online
from parts.setting import Setting, leave_heads, teach_heads

ROUNDS_NEAR_ONE = 8
"""Rounds of trainings with a store for each round of those that run the teacher."""


def measure_steps(setting: Setting, num_rounds: int) -> list[dict[str, Any]]:
    """Return one row per student size: ratios of the seconds of epochs of a few steps.

    `plain_again` is a second plain training: its distance from 1 shows how far the other ratios can
    be trusted.
    """
    clock, _ = clock_for(setting.device)
    teacher = setting.teacher()
    rows = []
    for size in ladder_sizes(Networks.resolve(setting.experiment, setting.assets.dataset)):
        trainings = _trainings(setting, size, teacher)
        epochs: dict[str, Callable[[], object]] = {
            name: training.run_epoch for name, training in trainings.items()
        }
        stored = {name: run for name, run in epochs.items() if not name.endswith("online")}
        online = {name: epochs[name] for name in ("kd_store", "kr_store", "kd_online", "kr_online")}
        # The ratios near 1 need more rounds; rounds with the teacher take long.
        near = interleave(stored, ROUNDS_NEAR_ONE * num_rounds, clock)
        far = interleave(online, num_rounds, clock)
        num_steps = trainings["plain"].loader.num_steps
        early, late = (ratio(near, name, "plain") for name in ("kr_store", "kr_late"))
        share = setting.experiment.distill.auxiliary_until
        rows.append(
            {
                "student": f"resnet width {size.width} ({size.num_parameters:,} parameters)",
                "r": round(setting.assets.teacher.flops / size.flops, 1),
                "r_seconds": round(forward_ratio(trainings["plain"], teacher, clock), 1),
                "kr_store_over_plain": early,
                "kr_interval": ratio_interval(near, "kr_store", "plain"),
                "kr_second_over_plain": ratio(near, "kr_second", "plain"),
                "kr_second_interval": ratio_interval(near, "kr_second", "plain"),
                "plain_again_over_plain": ratio(near, "plain_again", "plain"),
                "plain_again_interval": ratio_interval(near, "plain_again", "plain"),
                "kr_late_over_plain": late,
                "kr_training_over_plain": round(share * early + (1.0 - share) * late, 3),
                "kd_store_over_plain": ratio(near, "kd_store", "plain"),
                "online_kr_over_kr_store": ratio(far, "kr_online", "kr_store"),
                "online_kd_over_kd_store": ratio(far, "kd_online", "kd_store"),
                "plain_ms": round(1e3 * statistics.median(near["plain"]) / num_steps, 2),
            }
        )
        print(f"  {rows[-1]}", flush=True)
    return rows


def _trainings(setting: Setting, size: StudentSize, teacher: LoadedTeacher) -> dict[str, Training]:
    def training(method: str, *changes: str, online: bool = False, heads: bool = True) -> Training:
        method_changes = (f"distill.method={method}", "train.num_epochs=1000", *changes)
        experiment = setting.with_changes(*method_changes)
        built = build_training(
            experiment, setting.assets, size.width, Workers.alone(setting.device)
        )
        built._validate = dict  # type: ignore[method-assign]  # the steps alone are timed
        (teach_heads if heads else leave_heads)(built.learner.method)
        if online:
            built.loader.store = None
            built.forward = Online(built.learner, teacher, last_tap_only=method == "kd")
        return built

    return {
        "plain": training("plain"),
        "plain_again": training("plain"),
        "kd_store": training("kd"),
        "kr_store": training("kr"),
        "kr_second": training("kr", "distill.auxiliary_interval=2"),
        # As it is after `auxiliary_until`.
        "kr_late": training("kr", heads=False),
        "kd_online": training("kd", online=True),
        "kr_online": training("kr", online=True),
    }


def forward_ratio(training: Training, teacher: LoadedTeacher, clock: Clock) -> float:
    """Return the teacher's over the student's seconds of a forward: r on this machine."""
    images = next(training.loader.epoch(0)).images
    student, large = training.student.eval(), teacher.tapped.model

    @torch.inference_mode()
    def forward(model: nn.Module) -> None:
        model(images)

    work = {"student": lambda: forward(student), "teacher": lambda: forward(large)}
    return ratio(interleave(work, 5, clock), "teacher", "student")
