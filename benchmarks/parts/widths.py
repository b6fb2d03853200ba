"""(a) Widths around multiples of 16: the cost of one channel more than a processor's block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from krscale.models.capacity import latency_ms, num_parameters
from krscale.parallel import Workers
from krscale.setup.build import build_training
from parts.measuring import clock_for, interleave, ratio
from parts.setting import Setting

WIDTHS = (12, 15, 16, 17, 24, 31, 32, 33)
BLOCK = 16


def measure_widths(setting: Setting, num_rounds: int) -> list[dict[str, Any]]:
    """Return one row per width: plain steps and the latency of one image, over those of 16."""
    clock, _ = clock_for(setting.device)
    experiment = setting.with_changes("distill.method=plain", "train.num_epochs=1000")
    trainings = {
        width: build_training(experiment, setting.assets, width, Workers.alone(setting.device))
        for width in WIDTHS
    }
    epochs: dict[str, Callable[[], object]] = {}
    for width, training in trainings.items():
        training._validate = dict  # type: ignore[method-assign]  # the steps alone are timed
        epochs[str(width)] = training.run_epoch
    seconds = interleave(epochs, num_rounds, clock)
    shape = setting.assets.dataset.image_shape
    latency = {width: latency_ms(training.student, shape) for width, training in trainings.items()}
    rows = [
        {
            "width": width,
            "num_parameters": num_parameters(training.student),
            "step": ratio(seconds, str(width), str(BLOCK)),
            "latency": round(latency[width] / latency[BLOCK], 3),
        }
        for width, training in trainings.items()
    ]
    for row in rows:
        print(f"  {row}", flush=True)
    return rows
