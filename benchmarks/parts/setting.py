"""The experiment that is timed: glyphs of 45 classes, one teacher, a ladder of students."""

from __future__ import annotations

from pathlib import Path

import torch

from krscale.allocator import keep_freed_memory
from krscale.config import Experiment, load
from krscale.methods.base import Method
from krscale.methods.kr import KR
from krscale.setup.build import Assets
from krscale.setup.prepare import prepare
from krscale.setup.teacher import LoadedTeacher, open_teacher

CAPACITIES = ("1/64", "1/16", "1/4")


class Setting:
    """Prepared data, teacher and store of one experiment.

    Args:
        storage: Folder that keeps them from one run of the benchmark to the next.
        changes: Overrides of the experiment, `"table.field=value"`.
    """

    def __init__(self, storage: Path, *changes: str) -> None:
        keep_freed_memory()  # as every command does
        self._overrides = [
            f"storage_path={str(storage)!r}",
            "data.source=glyphs",
            "data.glyphs.num_classes=45",
            f"ladder.capacities={list(CAPACITIES)}",
            *changes,
        ]
        self.experiment = self.with_changes()
        self.prepared = prepare(self.experiment, _Silent())
        self.assets = Assets.open(self.prepared)
        self.device = torch.device(self.experiment.train.device)

    def with_changes(self, *changes: str) -> Experiment:
        """Return the experiment with further overrides."""
        return load(None, [*self._overrides, *changes])

    def teacher(self) -> LoadedTeacher:
        """Load the teacher, to compare running it with reading the store."""
        folder = Path(self.prepared.teacher_path)
        teacher = open_teacher(self.experiment, self.assets.dataset, folder)
        teacher.tapped.to(self.device)
        teacher.probes.to(self.device)
        return teacher


def teach_heads(method: Method) -> None:
    """Weigh the teacher's taps as those of a good teacher, so that KR teaches every head.

    After at most one epoch a teacher's taps are not informative: a step without heads would be
    timed.

    Args:
        method: Of the student; only KR has heads.
    """
    if isinstance(method, KR):
        method.weigh(torch.linspace(0.5, 1.0, len(method.information_gain)))
        if not method.teaches_heads:
            raise RuntimeError("the step of KR to be timed teaches no heads")


def leave_heads(method: Method) -> None:
    """Set the weight of every head to 0, as in the last part of a training.

    Args:
        method: Of the student; only KR has heads.
    """
    if isinstance(method, KR):
        method.weigh(torch.zeros_like(method.information_gain))
        if method.teaches_heads:
            raise RuntimeError("the step of KR to be timed without heads teaches some")


class _Silent:
    def phase(self, title: str) -> None:
        print(f"  preparing: {title}", flush=True)

    def advance(self, done: int, total: int) -> None:
        pass

    def note(self, text: str) -> None:
        print(f"  {text}", flush=True)
