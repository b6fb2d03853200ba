"""A search space against the networks it is for, before anything trains and without a disk."""

from __future__ import annotations

from typing import Any

from krscale.config import Experiment, fingerprint, read_toml, with_values
from krscale.data import describe_data
from krscale.search.space.space import COMMON, SearchSpace, find_space, load_space
from krscale.setup.assemble import check_models, num_teacher_taps
from krscale.setup.sizes import Task

SHAPING: dict[str, Any] = {"teacher": True, "student": True, "distill": {"method", "granularity"}}
"""All that `check_models` reads of what a space can change."""


def fitting_space(experiment: Experiment, task: Task) -> SearchSpace:
    """Read the experiment's space; every extreme value must give networks that can be built.

    Args:
        experiment: Names the space and the methods.
        task: What the networks must fit.

    Raises:
        UserError: One line for every mistake.
    """
    check_models(experiment, task)  # a mistake of the experiment itself is told once
    fitting: set[str] = set()

    def check(changed: Experiment) -> None:
        # Most fields do not shape networks, and building one takes a tenth of a second.
        shaping = fingerprint(changed.model_dump(mode="json", include=SHAPING))
        if shaping not in fitting:
            check_models(changed, task)
            fitting.add(shaping)

    return load_space(experiment, num_teacher_taps(experiment, task), check)


def check_space(experiment: Experiment) -> SearchSpace:
    """Read the experiment's space for its methods and for all that the file has a table of.

    Raises:
        UserError: One line for every mistake.
    """
    tables = read_toml(find_space(experiment.search.space))
    methods = dict.fromkeys([*experiment.search.methods, *tables])
    methods.pop(COMMON, None)
    changed = with_values(experiment, {"search.methods": tuple(methods)}, "search.methods")
    return fitting_space(changed, describe_data(experiment.data, experiment.cache_path))
