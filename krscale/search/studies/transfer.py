"""Try the best settings of neighbouring sizes early: they often suit the next size, too.

These trials are part of the study's budget, like any other. After the first half of its trials, a
study uses only its own sampler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from krscale.search.studies.study import TuningStudy
from krscale.search.studies.trial_spec import TuningKey

TRANSFERRED_FROM = "transferred_from"
"""User attribute: the trial that the settings come from, e.g. `kr@1/16 trial 5`."""


def transfer(
    key: TuningKey,
    studies: Mapping[TuningKey, TuningStudy],
    capacities: Sequence[str],
    num_planned: int,
    num_startup: int,
) -> None:
    """Enqueue the winners of the neighbouring sizes in one study, once for each neighbour.

    Args:
        key: The study that gets the next trial.
        studies: All tuning studies.
        capacities: The sizes, from the smallest.
        num_planned: Planned trials of a study.
        num_startup: Number of ended trials below which a neighbour's best means little.
    """
    study = studies[key]
    if study.num_waiting or not 0 < study.num_started < max(2, num_planned // 2):
        return
    trials = study.optuna.get_trials(deepcopy=False)
    sources = {str(t.user_attrs.get(TRANSFERRED_FROM, "")).partition(" ")[0] for t in trials}
    tried = [t.params or t.system_attrs.get("fixed_params") for t in trials]
    position = capacities.index(key.capacity)
    for neighbour in capacities[max(0, position - 1) : position + 2]:
        other = studies[TuningKey(key.method, neighbour)]
        winner = other.winner()
        if neighbour == key.capacity or other.key.name in sources or winner is None:
            continue
        if other.num_counted < num_startup:
            continue
        if winner.params not in tried and study.num_started + study.num_waiting < num_planned:
            source = f"{other.key.name} trial {winner.number}"
            study.optuna.enqueue_trial(winner.params, user_attrs={TRANSFERRED_FROM: source})
            study.recount()
            tried.append(winner.params)
