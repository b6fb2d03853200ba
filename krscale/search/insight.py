"""What a search found out about its settings, from the journal alone: nothing is run again.

Two questions. *Which settings mattered?* Per method and rung, the share of the variance of
validation accuracy that each setting explains (functional ANOVA over a random forest: Hutter, Hoos
and Leyton-Brown, ICML 2014, as Optuna implements it). *Which granularity and sparsity win at which
capacity?* Every trial that ran to its end, and the range of those that came near the best: trials
have one seed each, so that the best alone says little.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict

from krscale.config import parse_capacity
from krscale.errors import UserError
from krscale.files import write_json
from krscale.search.assignment import StudyKey
from krscale.search.studies import present_studies
from krscale.search.tally import Tally

INSIGHT_FILE = "insight.json"
FIGURE_FILE = "insight.png"
NEAR = 0.005
"""A trial within half a point of the best is near it."""
MIN_TRIALS = 8
"""Fewer complete trials than this, or than twice the settings, explain nothing."""
_GRANULARITY, _SPARSITY = "distill.granularity", "distill.sparsity"


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

    granularity: int | None
    sparsity: float | None
    val_accuracy: float


class StudyInsight(_Record):
    """One method at one rung.

    Attributes:
        near_best: Of the trials within half a point of the best, the values of each setting: lowest
            and highest number, or every choice.
        settings: Granularity and sparsity of each complete trial; empty where neither is searched.
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


class Insight(_Record):
    """A whole search, the smallest rung first."""

    name: str
    studies: tuple[StudyInsight, ...]

    def of_method(self, method: str) -> list[StudyInsight]:
        """Return the studies of a method, the smallest rung first."""
        return [study for study in self.studies if study.method == method]

    @property
    def methods(self) -> list[str]:
        """Methods in the order of the search."""
        return list(dict.fromkeys(study.method for study in self.studies))


def find_insight(run_path: Path) -> Insight:
    """Compute what a run's journal says of its settings.

    Raises:
        UserError: If the folder holds no journal.
    """
    journal = run_path / "journal.log"
    if not journal.is_file():
        raise UserError(f"{run_path}: no search was run here: there is no journal.log.")
    storage = JournalStorage(JournalFileBackend(str(journal)))
    tuned = {k: study for k, study in present_studies(storage).items() if not k.final}
    studies = [_study(key, study) for key, study in tuned.items()]
    studies.sort(key=lambda study: parse_capacity(study.capacity))
    return Insight(name=run_path.name, studies=tuple(studies))


def write_insight(insight: Insight, folder: Path) -> Path:
    """Write `insight.json` and return its path."""
    path = folder / INSIGHT_FILE
    write_json(path, insight.model_dump(mode="json"))
    return path


def _study(key: StudyKey, study: optuna.Study) -> StudyInsight:
    trials = Tally(key, study).counted()
    complete = [t for t in trials if t.state is TrialState.COMPLETE]
    best = max(complete, key=lambda t: t.values[0], default=None)
    return StudyInsight(
        method=key.method,
        capacity=key.capacity,
        num_complete=len(complete),
        num_pruned=sum(t.state is TrialState.PRUNED for t in trials),
        num_failed=sum(t.state is TrialState.FAIL for t in trials),
        best_accuracy=best.values[0] if best else None,
        best=dict(best.params) if best else {},
        near_best=_near(complete, best.values[0]) if best else {},
        importance=_importance(study, complete),
        settings=_settings(complete),
    )


def _importance(study: optuna.Study, complete: Sequence[FrozenTrial]) -> Importance:
    everywhere, somewhere = _searched(complete)
    left_out = tuple(sorted(somewhere - everywhere))
    needed = max(MIN_TRIALS, 2 * len(everywhere))

    def unknown(reason: str) -> Importance:
        return Importance(shares={}, num_trials=len(complete), left_out=left_out, reason=reason)

    if len(complete) < needed:
        return unknown(f"{len(complete)} trials ran to their end; {needed} are needed")
    if len({trial.values[0] for trial in complete}) == 1:
        return unknown("every trial was equally good")
    varied = [name for name in sorted(everywhere) if len({t.params[name] for t in complete}) > 1]
    if not varied:
        return unknown("every trial had the same settings")
    # Of a search with several objectives, the first is accuracy.
    found = get_param_importances(
        study,
        evaluator=FanovaImportanceEvaluator(seed=0),
        params=varied,
        target=lambda trial: trial.values[0],
    )
    return Importance(shares=found, num_trials=len(complete), left_out=left_out)


def _searched(trials: Iterable[FrozenTrial]) -> tuple[set[str], set[str]]:
    """Return the settings that all trials have, and those that any has."""
    names = [set(trial.params) for trial in trials]
    return set.intersection(*names) if names else set(), set().union(*names)


def _near(complete: Sequence[FrozenTrial], best: float) -> dict[str, list[Any]]:
    near = [trial for trial in complete if trial.values[0] >= best - NEAR]
    found: dict[str, list[Any]] = {}
    for name in sorted({name for trial in near for name in trial.params}):
        values = {trial.params[name] for trial in near if name in trial.params}
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        found[name] = [min(values), max(values)] if numbers else sorted(map(str, values))
    return found


def _settings(complete: Iterable[FrozenTrial]) -> tuple[Setting, ...]:
    return tuple(
        Setting(
            granularity=trial.params.get(_GRANULARITY),
            sparsity=trial.params.get(_SPARSITY),
            val_accuracy=trial.values[0],
        )
        for trial in complete
        if _GRANULARITY in trial.params or _SPARSITY in trial.params
    )
