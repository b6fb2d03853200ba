"""Check the names of an experiment's methods, and find what they need of the teacher."""

from __future__ import annotations

from collections.abc import Iterable

from krscale.config import Experiment
from krscale.errors import UserError
from krscale.knowledge.features import KINDS, FeatureKind
from krscale.methods import (
    METHODS,
    compares_samples,
    method_settings,
    parse_method,
    takes_mixed_labels,
    takes_unlabelled,
)


def methods_of(experiment: Experiment) -> tuple[str, ...]:
    """Return every method of an experiment once."""
    return tuple(dict.fromkeys((*experiment.search.methods, experiment.distill.method)))


def needed_kinds(methods: Iterable[str]) -> list[FeatureKind]:
    """Return the kinds of features from which methods learn."""
    needed = {kind for name in methods for kind in parse_method(name)[0].feature_kinds}
    return [kind for kind in KINDS if kind in needed]


def check_methods(experiment: Experiment) -> None:
    """Refuse unknown or unsuitable methods before anything is prepared.

    Methods are unsuitable if they need one class per image but views are mixed from two images, or
    if they have a teacher and need a label for every image but some images have none. A term whose
    warm-up would take the whole training is refused, too.
    """
    for where, names in (
        ("search.methods", experiment.search.methods),
        ("distill.method", (experiment.distill.method,)),
    ):
        for name in names:
            parse_method(name, where)
            if experiment.views.mixes and not takes_mixed_labels(name):
                raise _needs_one_class(experiment, name, where)
            if experiment.data.unlabelled and _needs_labels(name):
                raise UserError(
                    f"{where}: {name!r} has a teacher and does not say what it does with images "
                    "without labels (takes_unlabelled); leave data.unlabelled empty, or take other "
                    "methods."
                )
    _refuse_other_numbers_of_workers(experiment)
    methods = methods_of(experiment)
    warms_up = experiment.train.num_epochs == 1 and experiment.distill.reviewkd_warmup > 0.0
    if warms_up and any("reviewkd_warmup" in method_settings(name) for name in methods):
        raise UserError(
            "distill.reviewkd_warmup: a training of one epoch (train.num_epochs) would be warm-up "
            "alone, and never have the term; set it to 0, or train longer."
        )


def describe_taught(experiment: Experiment, num_labelled: int, num_unlabelled: int) -> str:
    """Return which methods use images without labels, and their steps; empty without such images.

    Args:
        experiment: The experiment, for its methods and batch size.
        num_labelled: Number of training images with a label.
        num_unlabelled: Number of those without.
    """
    if not num_unlabelled:
        return ""
    methods = methods_of(experiment)
    alone = [name for name in methods if not parse_method(name)[0].needs_teacher]
    size = experiment.train.global_batch_size
    text = (
        f"{experiment.data.unlabelled}: {num_unlabelled:,} images without labels, beside "
        f"{num_labelled:,} with labels. "
    )
    if len(alone) < len(methods):
        num_steps = -(-(num_labelled + num_unlabelled) // size)
        text += f"Students of the teacher learn from all of them, {num_steps:,} steps an epoch. "
    else:
        text += "No method of this experiment has a teacher, so none learns from them. "
    if alone:
        num_steps = -(-num_labelled // size)
        text += f"Without a teacher, from those with labels: {', '.join(alone)}, {num_steps:,}."
    return text.strip()


def _refuse_other_numbers_of_workers(experiment: Experiment) -> None:
    train = experiment.train
    found = [name for name in experiment.search.methods if compares_samples(name)]
    if found and train.most_workers > train.num_workers:
        raise UserError(
            f"train.max_workers: {' and '.join(found)} (search.methods) compare the samples of a "
            f"batch, so their result depends on the number of workers, which would be between "
            f"{train.num_workers} and {train.most_workers}; set it to 0, or take other methods."
        )


def _needs_labels(name: str) -> bool:
    return parse_method(name)[0].needs_teacher and not takes_unlabelled(name)


def _needs_one_class(experiment: Experiment, name: str, where: str) -> UserError:
    views = experiment.views
    on = [
        f"views.{key} = {getattr(views, key):g}"
        for key in ("mixup", "cutmix")
        if getattr(views, key)
    ]
    allowed = ", ".join(method for method in METHODS if takes_mixed_labels(method))
    return UserError(
        f"{where}: {name!r} needs one class for every image, and {' and '.join(on)} makes images "
        f"of two; set {'it' if len(on) == 1 else 'both'} to 0, or take methods that learn from "
        f"mixed labels: {allowed}."
    )
