"""Measure on validation images whether a teacher is fit to teach.

A teacher with the wrong preprocessing raises no error, and its students learn from its outputs. But
the fault can be measured: the teacher is no better than guessing, or its classifier is less
accurate than a linear probe on one of its taps, or it is better with another preprocessing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from krscale.config import Experiment
from krscale.data import Dataset
from krscale.errors import UserError
from krscale.knowledge.probes import are_bounded
from krscale.setup.candidates import Tried, as_settings, is_better, try_candidates
from krscale.setup.inputs import is_foreign

MIN_EPOCHS = 10
"""A teacher that is trained here for fewer epochs is not judged: it is only a trial run."""
NO_GAIN = 0.05
"""Information gain below which a classifier is hardly better than chance."""
LEAST_TRIED, MOST_TRIED = 64, 256
"""Number of validation images on which other preprocessing is tried: other normalisations always,
other sizes if a teacher seems poor. So few that this costs at most about a quarter of filling the
store."""
_GUESS = 0.01  # probability of guessing so well by chance


def describe_teacher(accuracy: float, gain: Sequence[float], taps: Sequence[str]) -> str:
    """Return one line with a teacher's accuracy and the information gain of each of its taps."""
    names = (*taps, "classifier")
    gains = ", ".join(f"{name} {value:.2f}" for name, value in zip(names, gain, strict=True))
    return f"teacher: {accuracy:.2%} of validation right; information gain of its taps: {gains}"


def find_faults(
    experiment: Experiment,
    dataset: Dataset,
    network: nn.Module,
    tap_logits: Tensor,
    gain: Sequence[float],
) -> tuple[str, ...]:
    """Return the faults of a teacher, one phrase each; empty if it is fit to teach.

    Args:
        experiment: The experiment that names the teacher.
        dataset: The data set, on whose validation split the teacher is judged.
        network: The teacher in eval mode, with its preprocessing.
        tap_logits: `[N, D, K]` for the whole validation split, the classifier last.
        gain: Information gain of every tap.
    """
    labels = torch.tensor(dataset.split("val").labels, device=tap_logits.device)
    right = tap_logits.argmax(dim=-1).eq(labels[:, None]).T.cpu().numpy()
    foreign = is_foreign(experiment.teacher)
    faults = []
    if are_bounded(tap_logits[:, -1]):
        faults.append(
            "all its outputs lie between 0 and 1, as after a softmax or a sigmoid, and logits are "
            "needed: leave that out"
        )
    if (foreign or experiment.teacher.num_epochs >= MIN_EPOCHS) and _is_guessing(
        right[-1], labels.cpu().numpy(), gain[-1]
    ):
        faults.append("it is no better than guessing the most frequent class")
    if not foreign:
        return tuple(faults)
    best = int(np.argmax(gain))
    if best < len(gain) - 1 and is_better(right[best], right[-1]):
        faults.append(
            f"a linear probe of its tap {best + 1} gets {right[best].mean():.1%} right, more than "
            "its own classifier"
        )
    # If the classifier has more information gain than every probe, the input size is right.
    suspect = bool(faults) or gain[-1] < max(gain) or len(gain) == 1
    rows = experiment.views.num_views * dataset.num_train
    number = min(MOST_TRIED, max(LEAST_TRIED, rows // 40))
    tried = try_candidates(network, dataset, number, other_sizes=suspect)
    return (*faults, *_better_ways(tried, dataset))


def require_fit(
    experiment: Experiment, faults: Sequence[str], accuracy: float, gain: Sequence[float]
) -> None:
    """Refuse a teacher with faults, unless `teacher.allow_poor` is set.

    Raises:
        UserError: If it has faults; the message gives the measurements, the likely causes, and what
            to do.
    """
    if not faults or experiment.teacher.allow_poor:
        return
    gains = ", ".join(f"{value:.2f}" for value in gain)
    causes = (
        "Likely causes: its normalisation, pixel range, order of channels, input size "
        "([teacher.preprocessing]), or the order of its classes; `krscale teacher check` tries "
        "them."
    )
    if not is_foreign(experiment.teacher):
        causes = "Likely causes: teacher.learning_rate, teacher.num_epochs, or wrong labels."
    raise UserError(
        f"teacher: {accuracy:.2%} of validation right, information gain of its taps {gains}: "
        f"{'; '.join(faults)}. {causes} teacher.allow_poor = true goes on with it as it is."
    )


def _is_guessing(right: np.ndarray, labels: np.ndarray, gain: float) -> bool:
    """Whether predictions are not significantly better than the most frequent class."""
    # This import takes half a second, which most processes can avoid.
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    if gain >= NO_GAIN:
        return False
    share = np.bincount(labels).max() / len(labels)
    test = binomtest(int(right.sum()), len(right), float(share), alternative="greater")
    return bool(test.pvalue > _GUESS)


def _better_ways(tried: Tried, dataset: Dataset) -> list[str]:
    """Return which other preprocessing, or order of classes, is clearly better."""
    faults = []
    if tried.configured is not None and tried.best is not tried.configured:
        found = as_settings(tried.best.preprocessing, dataset.image_shape)
        written = ", ".join(f"{name} = {json.dumps(value)}" for name, value in found.items())
        faults.append(f"it gets {tried.best.accuracy:.1%} right with preprocessing = {{{written}}}")
    if tried.reordered is not None:
        faults.append(
            f"it gets {tried.reordered.reordered:.1%} right with its classes in another order"
        )
    return faults
