"""What an epoch adds up to."""

import pytest
import torch

from krscale.methods.base import UNLABELLED, Batch, Mixture
from krscale.methods.learner import LearnerOutput
from krscale.training.epoch_sums import EpochSums


def test_of_a_mixed_image_the_weight_of_the_label_that_was_found_counts() -> None:
    logits = torch.eye(4)[torch.tensor([0, 1, 2, 3])]  # says 0, 1, 2, 3
    labels, others = torch.tensor([0, 0, 0, 3]), torch.tensor([1, 1, 1, 3])
    weights = torch.tensor([0.7, 0.6, 0.9, 0.2])
    batch = Batch(logits, labels, torch.arange(4), None, 4, {}, Mixture(others, weights))
    terms = torch.ones(1, 4)
    sums = EpochSums(torch.device("cpu"))
    sums.add(terms, LearnerOutput({"ce": terms[0]}, logits, {}), batch)
    metrics = sums.metrics(0, 1)
    assert metrics["train/accuracy"] == pytest.approx((0.7 + 0.4 + 0.0 + 1.0) / 4)
    assert metrics["train/ce"] == 1.0


def test_images_without_a_label_do_not_count_in_the_accuracy_but_in_the_loss() -> None:
    logits = torch.eye(4)
    labels = torch.tensor([0, 0, UNLABELLED, UNLABELLED])
    batch = Batch(logits, labels, torch.arange(4), None, 4)
    terms = torch.tensor([[1.0, 3.0, 0.0, 0.0]])
    sums = EpochSums(torch.device("cpu"))
    sums.add(terms, LearnerOutput({"ce": terms[0]}, logits, {}), batch)
    metrics = sums.metrics(0, 1)
    assert metrics["train/accuracy"] == 0.5
    assert metrics["train/ce"] == 1.0
