"""Check a search space against its networks, before anything trains and without disk access."""

from __future__ import annotations

from typing import Any

import torch

from krscale.cluster.address import starts_private
from krscale.config import Experiment, fingerprint, method_identity, with_values
from krscale.config.training import NO_CHANNELS_LAST_ON_CPU
from krscale.data import describe_data
from krscale.errors import UserError
from krscale.search.space.space import COMMON, SearchSpace, find_space, load_space, read_tables
from krscale.setup.methods import check_methods, methods_of
from krscale.setup.networks import Networks
from krscale.training.optimisers import check_optimiser

SHAPING: dict[str, Any] = {
    "teacher": True,
    "student": True,
    "train": {"global_batch_size", "gradient_accumulation"},
}
"""The settings on which the networks that `Networks.check` builds depend, besides the methods. It
builds none to check a granularity."""


def fitting_space(networks: Networks) -> SearchSpace:
    """Read the experiment's space and check that every extreme value gives networks that build.

    Args:
        networks: Networks of the experiment, which names the space and the methods.

    Raises:
        UserError: With one line for each mistake.
    """
    networks.check()  # a mistake of the experiment itself is reported once
    fitting = {_shaping(networks.experiment)}
    _refuse_channels_last(networks.experiment)

    def check(changed: Experiment) -> None:
        _refuse_channels_last(changed)
        check_methods(changed)
        check_optimiser(changed.train)
        if changed.distill.where_weight and not networks.experiment.distill.where_weight:
            raise UserError(
                "distill.where_weight is 0 in this experiment, so that nothing is stored that "
                "trials could compare: set it (--set distill.where_weight=1), or leave it out."
            )
        # Most fields do not affect networks, and building one takes a tenth of a second.
        of_changed = networks.of(changed)
        of_changed.check_granularity()
        shaping = _shaping(changed)
        if shaping not in fitting:
            of_changed.check()
            fitting.add(shaping)

    space = load_space(networks.experiment, networks.teacher.num_taps, check)
    _refuse_student_fields(networks.experiment, space)
    return space


def _shaping(experiment: Experiment) -> str:
    """Return a fingerprint of all settings on which the networks of `Networks.check` depend."""
    settings = experiment.model_dump(mode="json", include=SHAPING)
    return fingerprint([settings, sorted(methods_of(experiment))])


def _refuse_channels_last(experiment: Experiment) -> None:
    """Refuse `train.channels_last` if trials are certain to train on CPUs.

    The GPUs of a cluster are only known once it is joined (`run_search` checks them); a private Ray
    has those of this machine.

    Raises:
        UserError: If trials cannot use this memory layout.
    """
    train = experiment.train
    if not train.channels_last or train.device != "auto":
        return
    if starts_private(experiment.cluster) and not torch.cuda.is_available():
        raise UserError(
            f"train.channels_last: {NO_CHANNELS_LAST_ON_CPU}; this machine has no GPU, so trials "
            f"would train on CPUs."
        )


def _refuse_student_fields(experiment: Experiment, space: SearchSpace) -> None:
    """Refuse to search fields of the student if every size has its own student."""
    if not experiment.ladder.students:
        return
    for method, fields in space.describe().items():
        for dotted in fields:
            if dotted.startswith("student."):
                raise UserError(
                    f"{experiment.search.space}: {method}.{dotted}: the students of "
                    "[[ladder.students]] are what they are; leave it out of the space."
                )


def check_space(experiment: Experiment) -> SearchSpace:
    """Read the experiment's space for its methods and for all methods with a table in the file.

    Raises:
        UserError: With one line for each mistake.
    """
    tables = read_tables(find_space(experiment.search.space))
    methods: dict[tuple[str, ...], str] = {}
    for name in (*experiment.search.methods, *(name for name, _ in tables.values())):
        if name != COMMON:
            methods.setdefault(method_identity(name), name)
    changed = with_values(experiment, {"search.methods": tuple(methods.values())}, "search.methods")
    source = describe_data(experiment.data, experiment.cache_path)
    return fitting_space(Networks.resolve(changed, source))
