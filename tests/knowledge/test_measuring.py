"""A teacher is measured on images that no probe was fitted to, with allowance for chance."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from krscale.errors import UserError
from krscale.knowledge.measuring import HELD_OUT, TeacherKnowledge, check_teacher, measure
from krscale.knowledge.probes import Probes
from krscale.knowledge.taps import TapOutputs

NUM_CLASSES = 3
CPU = torch.device("cpu")


def images_of(labels: Tensor, *, misleading: bool = False) -> Tensor:
    """Return images `[N, 1, 1, 2]`: label, and whether the first tap reads it as the next one."""
    marks = torch.full_like(labels, misleading)
    return torch.stack([labels, marks], dim=1).float().view(-1, 1, 1, 2)


def teacher(images: Tensor) -> TapOutputs:
    """One tap, and a classifier that is always right."""
    labels, marks = images[:, 0, 0].long().unbind(dim=1)
    feature = F.one_hot((labels + marks) % NUM_CLASSES, NUM_CLASSES).float()
    return TapOutputs(9.0 * F.one_hot(labels, NUM_CLASSES).float(), (feature,))


def batches(labels: Tensor, **kind: bool) -> list[tuple[Tensor, Tensor]]:
    return [(images_of(part, **kind), part) for part in labels.split(6)]


LABELS = torch.arange(60) % NUM_CLASSES


def test_taps_are_measured_on_the_images_held_out() -> None:
    train, held_out = batches(LABELS), batches(LABELS[:30], misleading=True)
    for given, accuracy, count in ((held_out, 0.0, 30), (None, 1.0, len(LABELS) // HELD_OUT)):
        found = measure(teacher, train, given, (1, 1, 2), 1000, CPU)
        assert found.accuracy.tolist() == [accuracy, 1.0]
        assert found.num_held_out == count
        assert not found.bounded
        assert (found.information_gain[0] > 0.9) == (accuracy == 1.0)
        assert found.information_gain[1] > 0.99


def test_no_more_images_are_read_than_are_wanted() -> None:
    read: list[int] = []

    def watched(images: Tensor) -> TapOutputs:
        read.append(len(images))
        return teacher(images)

    measure(watched, batches(LABELS), batches(LABELS), (1, 1, 2), 24, CPU)
    assert read == [6] * 4 * 2


@pytest.mark.parametrize(
    ("num_held_out", "own", "is_poor"),
    [
        (100, 0.82, False),  # three standard errors are 9 points
        (100, 0.80, True),
        (100, 0.95, False),
        (10_000, 0.88, False),  # and here less than one point: the limit is three
        (10_000, 0.86, True),
    ],
)
def test_a_classifier_is_poor_where_a_probe_is_better_beyond_chance(
    num_held_out: int, own: float, is_poor: bool
) -> None:
    accuracy = torch.tensor([0.5, 0.9, 0.7, own])
    knowledge = TeacherKnowledge(Probes((2, 2, 2), 3), accuracy, accuracy, num_held_out)
    if not is_poor:
        check_teacher(knowledge, ("first", "second", "third"))
        return
    wanted = rf"right for {own:.1%} of {num_held_out} images .* own tap 'second' for 90\.0%"
    with pytest.raises(UserError, match=wanted):
        check_teacher(knowledge, ("first", "second", "third"))


@pytest.mark.parametrize(
    ("num_held_out", "num_wrong", "is_poor"),
    [(4, 1, False), (4, 3, True), (96, 3, False), (96, 8, True), (1000, 31, True)],
)
def test_a_probe_that_is_right_for_all_of_few_images_is_not_known_to_be_better(
    num_held_out: int, num_wrong: int, is_poor: bool
) -> None:
    """Its accuracy of 100 % has an error, too: one wrong answer of four proves nothing."""
    accuracy = torch.tensor([1.0, 1.0 - num_wrong / num_held_out])
    knowledge = TeacherKnowledge(Probes((2,), 3), accuracy, accuracy, num_held_out)
    if not is_poor:
        check_teacher(knowledge, ("first",))
        return
    with pytest.raises(UserError, match="own tap 'first' for 100"):
        check_teacher(knowledge, ("first",))
