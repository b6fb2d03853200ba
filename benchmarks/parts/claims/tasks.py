"""The tasks on which the claims are measured, and the experiment of every search on them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from krscale.config import Experiment, fingerprint, load
from krscale.search.space.space import load_space
from parts.claims.families import FAMILIES, Family
from parts.measuring import ROOT

SEEDS_APART = 100
"""Distance between the seeds of two searches, so that none of their trainings share one."""
_RECORDS = ROOT / "benchmarks" / "results" / "claims"
_LEVELS = 64  # taps of a teacher for which spaces are compared; any number would do
_WHERE = ("distill.where_weight=0.5", 'distill.where_schedule="falling"')
_SEARCH = ("search.space=claims", "search.trials_per_size=12", "tracking.enabled=false")
_ON_CPU = ('train.device="cpu"', *_SEARCH, *_WHERE)


@dataclass(frozen=True)
class Task:
    """Data, teacher and students on which methods are compared.

    Attributes:
        name: Name in results and commands.
        title: Title on the page.
        job: Its file in `jobs/`.
        changes: Settings of this benchmark that differ from the job.
        published: Published results on the data, and how their setting differs.
    """

    name: str
    title: str
    job: str
    changes: tuple[str, ...] = ()
    published: str = ""

    @property
    def path(self) -> Path:
        """The job's file."""
        return ROOT / "jobs" / self.job


TASKS = (
    Task("glyphs", "Glyphs", "claims.toml", _WHERE),
    Task(
        "fashion_mnist",
        "Fashion-MNIST",
        "fashion_mnist.toml",
        (
            "data.max_images=3000",
            "teacher.width=16",
            'ladder.capacities=["1/100","1/32"]',
            "train.num_epochs=30",
            *_ON_CPU,
        ),
    ),
    Task(
        "cifar10",
        "CIFAR-10",
        "cifar10.toml",
        (
            "data.max_images=4000",
            "teacher.width=16",
            'ladder.capacities=["1/100","1/32"]',
            "train.num_epochs=30",
            "train.global_batch_size=64",
            "search.grace_epochs=4",
            *_ON_CPU,
        ),
        "With all 50,000 images, ResNet-20 (0.27M parameters) reaches 91.25 % on test (He et al., "
        "2016).",
    ),
)
"""In the order in which they are measured."""


@dataclass(frozen=True)
class TaskRun:
    """A task with its settings from the command line.

    Attributes:
        task: The task.
        storage: Folder of the runs.
        data_path: Path of its data; empty keeps the job's own path.
        changes: Overrides of the job for all families.
        num_searches: Searches of every family, each with its own seeds.
    """

    task: Task
    storage: Path
    data_path: str = ""
    changes: tuple[str, ...] = ()
    num_searches: int = 2

    @property
    def records(self) -> Path:
        """Folder of finished searches' files: the repository's, unless settings are changed."""
        return self.storage / "records" if self.changes else _RECORDS

    @property
    def families(self) -> list[Family]:
        """The families that are searched on this task, the most decisive first."""
        return [f for f in FAMILIES if not f.tasks or self.task.name in f.tasks]

    def searches_of(self, family: Family) -> int:
        """Return how many searches of a family are made on this task."""
        if family not in self.families:
            return 0
        if self.task.name in family.once:
            return 1
        return min(self.num_searches, max(1, family.max_searches))

    def overrides(self, family: Family, number: int = 0) -> list[str]:
        """Return every `--set` of one search of a family.

        The name ends in the key, so that a run with other defaults or another space neither
        conflicts with this search nor is taken for it.
        """
        key = self.key(family, number)
        return [*self._overrides(family, number), f"name={_name(self, family, number)}-{key}"]

    def key(self, family: Family, number: int = 0) -> str:
        """Return a key that differs for searches with other settings or another space."""
        return _key(self, family, number)

    def record_path(self, family: Family, number: int = 0) -> Path:
        """Return the file in which a finished search is kept."""
        return self.records / f"{self.task.name}-{family.name}-{number}.json"

    def _overrides(self, family: Family, number: int) -> list[str]:
        path = [f"data.path={json.dumps(self.data_path)}"] if self.data_path else []
        return [
            f"storage_path={json.dumps(str(self.storage))}",
            *self.task.changes,
            *path,
            *self.changes,
            f"search.methods={json.dumps(family.methods)}",
            f"search.seed={number}",
            f"train.seed={SEEDS_APART * number}",
            *family.changes,
        ]

    def experiment(self, family: Family, number: int = 0) -> Experiment:
        """Return the experiment of one search of a family."""
        return _experiment(self, family, number)

    @property
    def missing_data(self) -> str:
        """The path of its data if nothing is there, else empty."""
        path = self.experiment(Family("data", ("plain",))).data.path
        return path if path and not Path(path).expanduser().exists() else ""

    def described(self, sections: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sections of an experiment without the data's path on this machine."""
        data = {**sections["data"], "path": load(str(self.task.path), []).data.path}
        return {**sections, "data": data}


def _name(run: TaskRun, family: Family, number: int) -> str:
    return f"claims-{run.task.name}-{family.name}-{number}"


@cache
def _experiment(run: TaskRun, family: Family, number: int) -> Experiment:
    return load(str(run.task.path), run.overrides(family, number))


@cache
def _key(run: TaskRun, family: Family, number: int) -> str:
    overrides = [*run._overrides(family, number), f"name={_name(run, family, number)}"]
    experiment = load(str(run.task.path), overrides)
    # The path of the data on this machine does not matter; its content is bound by the teacher.
    data = experiment.data.model_copy(update={"path": ""})
    same = experiment.model_copy(update={"data": data}).fingerprint()
    return fingerprint([same, load_space(experiment, _LEVELS).describe()])[:8]


def search_of(seed: int, first_seed: int) -> int:
    """Return the number of the search that a final training with a seed belongs to.

    >>> search_of(1104, first_seed=1000)
    1
    """
    return (seed - first_seed) // SEEDS_APART
