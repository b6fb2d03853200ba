"""Seconds of a step that several workers share, started by torchrun or by Ray Train.

Run as a script, this file is one worker of torchrun.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from krscale.config import load
from krscale.parallel import Workers
from krscale.setup.build import build_training
from parts.measuring import ROOT, interleave
from parts.setting import Setting

TASK = (
    "data.glyphs.image_size=32",
    "data.glyphs.num_train=1024",
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
"""Batches that fill two cores; the width of the student is passed separately."""
STEPS_OF_A_TURN = 2


def seconds_of_steps(storage: str, changes: Sequence[str], width: int, epochs: int) -> list[float]:
    """Return the mean seconds of a step in each epoch, after an epoch that does not count.

    Called by every worker of a process group, or by one process without a group.

    Args:
        storage: Of data, teacher and store, prepared before.
        changes: Of the experiment.
        width: Of the student.
        epochs: Number of epochs that count.
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


def seconds_in_turns(
    storage: str, changes: Sequence[str], width: int, rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of a few steps of each kind; each is timed several times, in turns.

    `one`: the first worker alone, while the others wait. `two`: all workers, which share the batch.
    `apart`: all workers at once, each with its share of the batch as its own batch and without
    exchange, which is the most that the machine allows.

    Called by every worker of a process group. A turn ends when the last worker has ended.

    Args:
        storage: Of data, teacher and store, prepared before.
        changes: Of the experiment.
        width: Of the student.
        rounds: How many times each kind is timed, after one time that does not count.
    """
    torch.set_num_threads(1)
    workers, alone = Workers.from_environment(), Workers.alone()
    setting = Setting(Path(storage), *changes)
    batch = setting.experiment.train.global_batch_size
    share = f"train.global_batch_size={batch // workers.world_size}"

    def steps(of: Workers, *more: str, taken: bool = True) -> Callable[[], None]:
        training = build_training(setting.with_changes(*more), setting.assets, width, of)
        training.forward.train()
        training.learner.method.begin_epoch(0.0)

        def run() -> None:
            if taken:
                for batch in islice(training.loader.epoch(0), STEPS_OF_A_TURN):
                    training._step(batch)
            dist.barrier()

        return run

    work = {
        "one": steps(alone, taken=workers.rank == 0),
        "two": steps(workers),
        "apart": steps(alone, share),
    }
    return interleave(work, rounds, time.perf_counter)


def in_turns_by_torchrun(
    num_workers: int, storage: str, changes: Sequence[str], width: int, rounds: int
) -> dict[str, list[float]]:
    """Return `seconds_in_turns` of the first worker that torchrun starts."""
    found: dict[str, list[float]] = _torchrun(
        num_workers, "seconds_in_turns", storage, list(changes), width, rounds
    )
    return found


def by_torchrun(
    num_workers: int, storage: str, changes: Sequence[str], width: int, epochs: int
) -> list[float]:
    """Return `seconds_of_steps` of the first worker that torchrun starts."""
    found: list[float] = _torchrun(
        num_workers, "seconds_of_steps", storage, list(changes), width, epochs
    )
    return found


def _torchrun(num_workers: int, *asked_for: Any) -> Any:
    """Return the first worker's result of a function here, given by name and arguments."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "asked.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(asked_for), encoding="utf-8")
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
        return json.loads(answer.read_text(encoding="utf-8"))


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
    """Prepare data, teacher and store once, before several workers need them at the same time."""
    load(None, list(changes))
    Setting(storage, *changes)


def _loop(config: dict[str, Any]) -> list[float]:
    return seconds_of_steps(*config["asked"])


def main(words: Sequence[str]) -> None:
    """Run one worker of torchrun."""
    asked, answer = map(Path, words)
    dist.init_process_group("gloo")
    try:
        name, *arguments = json.loads(asked.read_text(encoding="utf-8"))
        functions = {f.__name__: f for f in (seconds_of_steps, seconds_in_turns)}
        seconds = functions[name](*arguments)
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
