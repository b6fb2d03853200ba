"""Analyse what a search found out about its settings, from the journal alone, without new trials.

There are three questions. *Which settings mattered?* Per method and size, the share of the variance
of validation accuracy that each setting explains (functional ANOVA over a random forest: Hutter,
Hoos and Leyton-Brown, ICML 2014, as implemented in Optuna). *Which granularity and sparsity win at
which capacity?* Every trial that ran to its end, and the range of those near the best; trials have
one seed each, so the best alone means little. *Was the search long enough?* The best after each
trial, and the final trainings after each epoch.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from krscale.config import is_share, parse_capacity
from krscale.errors import UserError
from krscale.files import damaged
from krscale.report.findings import NEAR, Importance, Insight, Setting, StudyInsight
from krscale.report.students import is_within
from krscale.runs.kinds import describe_folder, require_folder
from krscale.search.studies.journal import JOURNAL, read_journal
from krscale.search.studies.opening import present_studies
from krscale.search.studies.study import FinalStudy, TuningStudy
from krscale.search.studies.trial_spec import FinalKey, TuningKey

MIN_TRIALS = 8
"""With fewer complete trials than this, or than twice the settings, importance is not computed."""
GRANULARITY, SPARSITY = "distill.granularity", "distill.sparsity"


def find_insight(run_path: Path) -> Insight:
    """Analyse the settings of a run from its journal.

    Raises:
        UserError: If the folder contains no journal, with a description of what it contains.
    """
    journal = run_path / JOURNAL
    if not journal.is_file():
        require_folder(run_path)
        raise UserError(
            f"{run_path}: no search was run here (there is no {JOURNAL}): "
            f"{describe_folder(run_path)}."
        )
    present = present_studies(read_journal(journal))
    if not present:
        raise damaged(journal, "it holds no study", "Restore it from a copy, or search again.")
    studies = [
        _study(TuningStudy(key, study), present.get(key.finals))
        for key, study in present.items()
        if isinstance(key, TuningKey)
    ]
    # The journal has no sizes for students with a name, but a search begins with the largest.
    begun = list(dict.fromkeys(study.capacity for study in studies))
    studies.sort(key=lambda study: _rank(study.capacity, begun))
    return Insight(name=run_path.name, studies=tuple(studies))


def _rank(capacity: str, begun: Sequence[str]) -> float:
    """Return a sorting key for sizes; `begun` is the order in which the search began them."""
    return parse_capacity(capacity) if is_share(capacity) else -begun.index(capacity)


def _study(study: TuningStudy, finals: optuna.Study | None) -> StudyInsight:
    trials, finals_key = study.counted(), FinalKey(study.key.method, study.key.capacity)
    complete = [t for t in trials if t.state is TrialState.COMPLETE]
    best = study.winner()
    return StudyInsight(
        method=study.key.method,
        capacity=study.key.capacity,
        num_complete=len(complete),
        num_pruned=sum(t.state is TrialState.PRUNED for t in trials),
        num_failed=sum(t.state is TrialState.FAIL for t in trials),
        best_accuracy=best.values[0] if best else None,
        best=dict(best.params) if best else {},
        near_best=_near(complete, best.values[0]) if best else {},
        importance=_importance(study.optuna, complete),
        settings=_settings(complete),
        best_so_far=_best_so_far(trials),
        learning=_learning(FinalStudy(finals_key, finals, study).counted()) if finals else (),
    )


def _best_so_far(trials: Iterable[FrozenTrial]) -> tuple[float | None, ...]:
    # In the order in which they ended, so that it shows the result of a shorter search.
    ended = sorted(trials, key=lambda trial: trial.datetime_complete or datetime.max)
    values = [t.values[0] if t.state is TrialState.COMPLETE else -math.inf for t in ended]
    best = itertools.accumulate(values, max)
    return tuple(value if math.isfinite(value) else None for value in best)


def _learning(finals: Iterable[FrozenTrial]) -> tuple[float, ...]:
    """Return the mean accuracy over the trainings that ran to their end, by epoch."""
    whole = [t.intermediate_values for t in finals if t.state is TrialState.COMPLETE]
    epochs = sorted(set.intersection(*map(set, whole))) if whole else []
    return tuple(statistics.fmean(values[epoch] for values in whole) for epoch in epochs)


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
    # The import loads scikit-learn, which takes a second; a search of few trials does not need it.
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    # With several objectives, the first is accuracy.
    found = get_param_importances(
        study,
        evaluator=FanovaImportanceEvaluator(seed=0),
        params=varied,
        target=lambda trial: trial.values[0],
    )
    return Importance(shares=found, num_trials=len(complete), left_out=left_out)


def _searched(trials: Iterable[FrozenTrial]) -> tuple[set[str], set[str]]:
    """Return the settings that all trials have, and the settings that at least one trial has."""
    names = [set(trial.params) for trial in trials]
    return set.intersection(*names) if names else set(), set().union(*names)


def _near(complete: Sequence[FrozenTrial], best: float) -> dict[str, list[Any]]:
    near = [trial for trial in complete if is_within(trial.values[0], best, NEAR)]
    found: dict[str, list[Any]] = {}
    for name in sorted({name for trial in near for name in trial.params}):
        values = {trial.params[name] for trial in near if name in trial.params}
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        found[name] = [min(values), max(values)] if numbers else sorted(map(str, values))
    return found


def _settings(complete: Iterable[FrozenTrial]) -> tuple[Setting, ...]:
    return tuple(
        Setting(
            granularity=trial.params.get(GRANULARITY),
            sparsity=trial.params.get(SPARSITY),
            val_accuracy=trial.values[0],
        )
        for trial in complete
        if GRANULARITY in trial.params or SPARSITY in trial.params
    )
