"""The methods of an experiment: their names checked, and what they need of the teacher."""

from __future__ import annotations

from collections.abc import Iterable

from krscale.config import Experiment
from krscale.knowledge.features import KINDS, FeatureKind
from krscale.methods import parse_method


def methods_of(experiment: Experiment) -> tuple[str, ...]:
    """Return every method of an experiment, once."""
    return tuple(dict.fromkeys((*experiment.search.methods, experiment.distill.method)))


def needed_kinds(methods: Iterable[str]) -> list[FeatureKind]:
    """Return the kinds of features that methods learn from."""
    needed = {kind for name in methods for kind in parse_method(name)[0].feature_kinds}
    return [kind for kind in KINDS if kind in needed]


def check_methods(experiment: Experiment) -> None:
    """Refuse method names that nobody registered, before anything is prepared."""
    for where, names in (
        ("search.methods", experiment.search.methods),
        ("distill.method", (experiment.distill.method,)),
    ):
        for name in names:
            parse_method(name, where)
