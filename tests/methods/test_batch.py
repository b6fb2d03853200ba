"""What a batch holds of its images: labels, mixed and missing ones, the teacher's knowledge."""

from __future__ import annotations

import torch

from krscale.methods.batch import (
    UNLABELLED,
    Batch,
    Mixture,
    classes_of,
    label_cross_entropy,
    teacher_knowledge,
)

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])


def test_what_the_teacher_says_is_detached() -> None:
    said = torch.randn(5, 2, 6, dtype=torch.bfloat16, requires_grad=True)
    batch = Batch(torch.zeros(5, 1), torch.zeros(5), torch.arange(5), said, 5)
    knowledge = teacher_knowledge(batch)
    assert not knowledge.requires_grad
    assert knowledge.dtype == torch.float32


def test_the_cross_entropy_with_mixed_labels_by_hand() -> None:
    """Each label has the weight of its image; an image without a label contributes 0."""
    mixture = Mixture(torch.tensor([2, UNLABELLED]), torch.tensor([0.75, 0.25]))
    found = label_cross_entropy(LOGITS, torch.tensor([0, UNLABELLED]), mixture)
    log_p = LOGITS[0].double() - LOGITS[0].double().exp().sum().log()
    expected = torch.stack([-0.75 * log_p[0] - 0.25 * log_p[2], torch.tensor(0.0)])
    torch.testing.assert_close(found, expected.float())


def test_the_class_of_an_image_without_a_label_is_the_teachers() -> None:
    assert classes_of(torch.tensor([2, UNLABELLED]), LOGITS).tolist() == [2, 1]


def test_a_part_of_a_batch_keeps_what_belongs_to_its_samples() -> None:
    batch = Batch(
        images=torch.arange(4.0).view(4, 1, 1, 1),
        labels=torch.arange(4),
        samples=torch.arange(10, 14),
        tap_logits=torch.arange(4.0).view(4, 1, 1),
        global_size=8,
        teacher_features={"pooled": (torch.arange(4.0).view(4, 1),)},
        mixture=Mixture(torch.arange(20, 24), torch.arange(4.0)),
    )
    part = batch.rows(1, 3)
    assert part.samples.tolist() == [11, 12]
    assert part.global_size == 8, "of all workers"
    assert part.mixture is not None
    assert part.tap_logits is not None
    assert part.mixture.labels.tolist() == [21, 22]
    for values in (
        *(part.images, part.labels, part.tap_logits, part.mixture.weights),
        *part.teacher_features["pooled"],
    ):
        assert values.flatten().tolist() == [1, 2]
