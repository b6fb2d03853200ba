"""What an epoch adds up to."""

import pytest
import torch

from krscale.methods.base import UNLABELLED, Batch, Mixture
from krscale.methods.learner import LearnerOutput
from krscale.training import epoch_sums
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


def test_diagnostics_of_uneven_shares_are_those_of_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first worker has three of four samples, the second one; then four and none."""
    steps = [((3, 8.0), (1, 4.0)), ((4, 2.0), (0, 0.0))]
    workers = [EpochSums(torch.device("cpu")) for _ in range(2)]
    for step in steps:
        for sums, (size, value) in zip(workers, step, strict=True):
            logits = torch.zeros(size, 4)
            batch = Batch(logits, torch.zeros(size).long(), torch.arange(size), None, 4)
            output = LearnerOutput({"ce": logits[:, 0]}, logits, {"active": torch.tensor(value)})
            sums.add(torch.zeros(1, size), output, batch)
    packed = list[torch.Tensor]()
    monkeypatch.setattr(epoch_sums, "sum_over_workers", lambda own: packed.append(own) or own)
    workers[1].metrics(0, 2)
    monkeypatch.setattr(epoch_sums, "sum_over_workers", lambda own: own + packed[0])
    assert workers[0].metrics(0, 2)["active"] == pytest.approx(((3 * 8 + 4) / 4 + 2.0) / 2)
