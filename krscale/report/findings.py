"""What a search found out about its settings: `insight.json`, its shape, writing and reading.

`krscale.search.insight` finds it in the journal. Accuracies are shares in [0, 1], on validation.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from krscale.config import read_record
from krscale.files import write_json

INSIGHT_FILE = "insight.json"
INSIGHT_FIGURE_FILE = "insight.png"
NEAR = 0.005
"""A trial within half a point of the best is near it."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Importance(_Record):
    """How much each setting mattered in one study; `shares` add up to 1.

    Attributes:
        shares: By setting, the largest first; empty where it cannot be said.
        num_trials: Complete trials it rests on.
        left_out: Settings that were not searched in every trial, and have no share.
        reason: Why it cannot be said; empty when it can.
    """

    shares: dict[str, float]
    num_trials: int
    left_out: tuple[str, ...] = ()
    reason: str = ""


class Setting(_Record):
    """What one complete trial was given of granularity and sparsity, and how good it was."""

    granularity: int | str | None
    sparsity: float | None
    val_accuracy: float


class StudyInsight(_Record):
    """One method at one size.

    Attributes:
        near_best: Of the trials within half a point of the best, the values of each setting: lowest
            and highest number, or every choice.
        settings: Granularity and sparsity of each complete trial; empty where neither is searched.
        best_so_far: After each trial that counts, the best accuracy of a complete one until then.
        learning: After each epoch of the final trainings, their mean accuracy.
    """

    method: str
    capacity: str
    num_complete: int
    num_pruned: int
    num_failed: int
    best_accuracy: float | None
    best: dict[str, Any]
    near_best: dict[str, list[Any]]
    importance: Importance
    settings: tuple[Setting, ...]
    best_so_far: tuple[float | None, ...] = ()  # there is none in files of older versions
    learning: tuple[float, ...] = ()


class Insight(_Record):
    """A whole search, the smallest size first."""

    name: str
    studies: tuple[StudyInsight, ...]

    def of_method(self, method: str) -> list[StudyInsight]:
        """Return the studies of a method, the smallest size first."""
        return [study for study in self.studies if study.method == method]

    @property
    def methods(self) -> list[str]:
        """Methods in the order of the search."""
        return list(dict.fromkeys(study.method for study in self.studies))

    def study(self, method: str, capacity: str) -> StudyInsight | None:
        """Return one study, if there is."""
        found = (s for s in self.studies if (s.method, s.capacity) == (method, capacity))
        return next(found, None)


def write_insight(insight: Insight, folder: Path) -> Path:
    """Write `insight.json` and return its path."""
    path = folder / INSIGHT_FILE
    write_json(path, insight.model_dump(mode="json"))
    return path


def read_insight(folder: Path) -> Insight | None:
    """Read `insight.json`; None where there is none.

    Raises:
        UserError: If it is damaged, or of a version that knew more.
    """
    path = folder / INSIGHT_FILE
    if not path.is_file():
        return None
    command = f"krscale insight {shlex.quote(str(folder))}"
    rebuild = f"It may be of another version of krscale. `{command}` makes it again."
    return read_record(path, Insight, rebuild)
