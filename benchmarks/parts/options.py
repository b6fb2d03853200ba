"""(a) The step's settings: channels-last, bf16 and torch.compile against the default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from krscale.parallel import Workers
from krscale.setup.build import build_training
from krscale.setup.networks import Networks
from krscale.setup.sizes import ladder_sizes
from parts.measuring import clock_for, interleave, ratio
from parts.setting import Setting, teach_heads

ON_CPU = ("bf16", "compile")
"""Channels-last is refused on CPUs."""
OPTIONS = {
    "channels_last": ("train.channels_last=true",),
    "bf16": ("train.precision='bf16'",),
    "bf16_channels_last": ("train.precision='bf16'", "train.channels_last=true"),
    "compile": ("train.compile=true",),
}

NUM_STUDENTS = 2
"""The smallest: bf16 is many times slower on a CPU without instructions for it."""


def measure_options(setting: Setting, num_rounds: int) -> list[dict[str, Any]]:
    """Return one row per student size: a step of KR with the store, over the default step.

    The first round, in which `compile` compiles, does not count.
    """
    clock, _ = clock_for(setting.device)
    names = ON_CPU if setting.device.type == "cpu" else tuple(OPTIONS)
    rows = []
    for size in ladder_sizes(Networks.resolve(setting.experiment, setting.assets.dataset))[
        :NUM_STUDENTS
    ]:
        epochs: dict[str, Callable[[], object]] = {}
        for name in ("default", *names):
            experiment = setting.with_changes(
                "distill.method=kr", "train.num_epochs=1000", *OPTIONS.get(name, ())
            )
            training = build_training(
                experiment, setting.assets, size.width, Workers.alone(setting.device)
            )
            training._validate = dict  # type: ignore[method-assign]  # the steps alone are timed
            teach_heads(training.learner.method)
            epochs[name] = training.run_epoch
        seconds = interleave(epochs, num_rounds, clock)
        row: dict[str, Any] = {"student": f"resnet width {size.width}"}
        row |= {name: ratio(seconds, name, "default") for name in names}
        rows.append(row)
        print(f"  {row}", flush=True)
    return rows
