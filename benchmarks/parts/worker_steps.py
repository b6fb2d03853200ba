"""One training that several workers share, started by torchrun or by Ray Train: seconds of a step.

Run as a script it is one worker of torchrun's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from krscale.config import load
from krscale.parallel import Workers
from krscale.setup.build import build_training
from parts.measuring import ROOT
from parts.setting import Setting

TASK = (
    "data.glyphs.image_size=32",
    "data.glyphs.num_train=2048",
    "data.glyphs.num_val=64",
    "data.glyphs.num_test=64",
    "teacher.width=8",
    "teacher.num_epochs=1",
    "teacher.allow_poor=true",
    "views.num_views=1",
    "distill.method=plain",
    "train.device=cpu",
    "train.global_batch_size=512",
)
"""Batches that fill two cores; the width of the student is given apart from it."""


def seconds_of_steps(storage: str, changes: Sequence[str], width: int, epochs: int) -> list[float]:
    """Return the mean seconds of a step in each epoch, after one that does not count.

    Called by every worker of a process group, or by one process without any.

    Args:
        storage: Of data, teacher and store, prepared before.
        changes: Of the experiment.
        width: Of the student.
        epochs: That count.
    """
    torch.set_num_threads(1)
    setting = Setting(Path(storage), *changes, f"train.num_epochs={epochs + 1}")
    workers = Workers.from_environment()
    training = build_training(setting.experiment, setting.assets, width, workers)
    seconds = []
    for _ in range(epochs + 1):
        before = training.seconds_in_steps
        training.run_epoch()
        seconds.append((training.seconds_in_steps - before) / training.loader.num_steps)
    return seconds[1:]


def by_torchrun(
    num_workers: int, storage: str, changes: Sequence[str], width: int, epochs: int
) -> list[float]:
    """Return `seconds_of_steps` of the first worker that torchrun starts."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "asked.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps([storage, list(changes), width, epochs]), encoding="utf-8")
        paths = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])
        subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc-per-node", str(num_workers), __file__, str(asked), str(answer),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths,
                 "GLOO_SOCKET_IFNAME": "lo"},
            check=True,
        )  # fmt: skip
        found: list[float] = json.loads(answer.read_text(encoding="utf-8"))
    return found


def by_ray_train(
    num_workers: int, storage: str, changes: Sequence[str], width: int, epochs: int
) -> list[float]:
    """Return `seconds_of_steps` of the first worker that Ray Train starts on the connected Ray."""
    from ray import train
    from ray.train.torch import TorchTrainer

    from krscale.cluster.rendezvous import OneAddress

    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            _loop,  # type: ignore[arg-type]  # as in krscale/cluster/train.py
            train_loop_config={"asked": [storage, list(changes), width, epochs]},
            torch_config=OneAddress(backend="gloo"),
            scaling_config=train.ScalingConfig(
                num_workers=num_workers, resources_per_worker={"CPU": 1.0}
            ),
            run_config=train.RunConfig(name="steps", storage_path=folder),
        )
        found: list[float] = trainer.fit().return_value  # type: ignore[attr-defined]
    return found


def prepared(storage: Path, changes: Sequence[str]) -> None:
    """Prepare data, teacher and store once, before workers look for them at the same time."""
    load(None, list(changes))
    Setting(storage, *changes)


def _loop(config: dict[str, Any]) -> list[float]:
    return seconds_of_steps(*config["asked"])


def main(words: Sequence[str]) -> None:
    """Be one worker of torchrun's."""
    asked, answer = map(Path, words)
    dist.init_process_group("gloo")
    try:
        seconds = seconds_of_steps(*json.loads(asked.read_text(encoding="utf-8")))
        if dist.get_rank() == 0:
            answer.write_text(json.dumps(seconds), encoding="utf-8")
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
    # Threads of gloo can abort an ordinary exit on a busy machine, after all the work is done.
    sys.stdout.flush()
    os._exit(0)
