"""(b) The speed of building a store, and (c) its content and the effect on a student's accuracy."""

from __future__ import annotations

import math
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from krscale.data.augmentation.views import normalise
from krscale.parallel import Workers
from krscale.report.interval import half_width
from krscale.setup.build import build_training
from krscale.setup.networks import Networks
from krscale.setup.sizes import ladder_sizes
from krscale.store import KnowledgeStore, StoreSpec, prepare_store
from krscale.training.loop import fit
from parts.measuring import clock_for, interleave, ratio
from parts.setting import Setting

FORWARD_BATCH_SIZE = 256


def measure_build(setting: Setting, storage: Path, num_rounds: int) -> dict[str, Any]:
    """Compare building a store with the teacher's bare forward of as many images."""
    clock, _ = clock_for(setting.device)
    experiment, dataset = setting.experiment, setting.assets.dataset
    teacher = setting.teacher()
    images, _labels = dataset.split("train").tensors()
    inputs = normalise(images[:FORWARD_BATCH_SIZE].to(setting.device), dataset.mean, dataset.std)
    views = experiment.views.model_copy(update={"num_views": 2})  # enough to time
    num_views = views.num_views * len(images)
    path = storage / "built"
    wall: list[float] = []

    def build() -> None:
        shutil.rmtree(path, ignore_errors=True)
        started = time.perf_counter()
        prepare_store(
            StoreSpec(
                path,
                {},
                dataset,
                views,
                experiment.store,
                lambda: (teacher.tapped, teacher.probes),
                setting.device,
            ),
            lambda done, total: None,
        )
        wall.append(time.perf_counter() - started)

    @torch.inference_mode()
    def forward() -> None:
        for _ in range(num_views // FORWARD_BATCH_SIZE):
            teacher.tapped.model(inputs)

    seconds = interleave({"build": build, "forward": forward}, num_rounds, clock)
    store = KnowledgeStore.open(path)
    info = store.info()
    return {
        "bytes_per_view_and_tap": round(info["bytes_per_view_and_tap"], 2),
        "num_taps": store.num_taps,
        "num_classes": store.num_classes,
        "top_k": store.top_k,
        "bits": store.manifest.plan.layout.bits,
        "encoding_error": [round(error, 4) for error in store.manifest.encoding_error],
        "build_over_teacher_forward": ratio(seconds, "forward", "build"),
        "views_per_second": round(num_views / min(wall)),
    }


def measure_accuracy(storage: Path, num_seeds: int, *changes: str) -> dict[str, Any]:
    """Train the same students with the chosen and with the exact store; paired by seed.

    Returns:
        `accuracy_loss_points`, the mean difference in points of validation accuracy, and the half
        width of its 95 % interval.
    """
    chosen = Setting(storage, *changes)
    exact = Setting(storage, *changes, "store.top_k=45")
    size = ladder_sizes(Networks.resolve(chosen.experiment, chosen.assets.dataset))[1]
    losses = []
    for seed in range(num_seeds):
        accuracy = {}
        for name, setting in (("chosen", chosen), ("exact", exact)):
            experiment = setting.with_changes("distill.method=kr", f"train.seed={seed}")
            training = build_training(
                experiment, setting.assets, size.width, Workers.alone(setting.device)
            )
            accuracy[name] = fit(training, lambda metrics: None)["val/accuracy"]
        losses.append(100 * (accuracy["exact"] - accuracy["chosen"]))
        print(f"  seed {seed}: {accuracy}", flush=True)
    return {
        "accuracy_loss_points": round(statistics.mean(losses), 2),
        "accuracy_loss_interval": round(half_width(losses) or math.inf, 2),
        "accuracy_num_seeds": num_seeds,
        "accuracy_student": f"resnet width {size.width}",
        "teacher_val_accuracy": round(chosen.assets.teacher.val_accuracy, 4),
    }
