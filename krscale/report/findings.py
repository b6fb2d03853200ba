"""The results of a search on its settings: `insight.json`, its schema, writing and reading.

`krscale.search.insight` computes them from the journal. Accuracies are shares in [0, 1], on the
validation split.
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
"""Maximum distance from the best accuracy that counts as near: half a percentage point."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Importance(_Record):
    """How much each setting mattered in one study; `shares` add up to 1.

    Attributes:
        shares: By setting, the largest first; empty if unknown.
        num_trials: Number of complete trials it is based on.
        left_out: Settings that were not searched in every trial, and have no share.
        reason: Why it is unknown; empty if it is known.
    """

    shares: dict[str, float]
    num_trials: int
    left_out: tuple[str, ...] = ()
    reason: str = ""


class Setting(_Record):
    """Granularity and sparsity of one complete trial, and its accuracy."""

    granularity: int | str | None
    sparsity: float | None
    val_accuracy: float


class StudyInsight(_Record):
    """One method at one size.

    Attributes:
        near_best: Values of each setting among the trials within half a point of the best: lowest
            and highest number, or every choice.
        settings: Granularity and sparsity of each complete trial; empty if neither is searched.
        best_so_far: After each trial that counts, the best accuracy of a complete trial so far.
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
    best_so_far: tuple[float | None, ...] = ()  # missing in files of older versions
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
        """Return one study, or None."""
        found = (s for s in self.studies if (s.method, s.capacity) == (method, capacity))
        return next(found, None)


def write_insight(insight: Insight, folder: Path) -> Path:
    """Write `insight.json` and return its path."""
    path = folder / INSIGHT_FILE
    write_json(path, insight.model_dump(mode="json"))
    return path


def read_insight(folder: Path) -> Insight | None:
    """Read `insight.json`; None if it does not exist.

    Raises:
        UserError: If it is damaged, or has fields of a newer version.
    """
    path = folder / INSIGHT_FILE
    if not path.is_file():
        return None
    command = f"krscale insight {shlex.quote(str(folder))}"
    rebuild = f"It may be of another version of krscale. `{command}` makes it again."
    return read_record(path, Insight, rebuild)
