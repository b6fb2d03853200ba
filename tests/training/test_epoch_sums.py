"""Sums over an epoch, and the metrics made of them."""

import pytest
import torch

from krscale.errors import NonFiniteError
from krscale.methods.batch import UNLABELLED, Batch, Mixture
from krscale.methods.learner import LearnerOutput
from krscale.training import epoch_sums
from krscale.training.epoch_sums import EpochSums


def test_of_a_mixed_image_the_weight_of_the_label_that_was_found_counts() -> None:
    logits = torch.eye(5)[torch.tensor([0, 1, 2, 3])]  # predicts 0, 1, 2, 3
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
    logits = torch.eye(5)[:4]
    labels = torch.tensor([0, 0, UNLABELLED, UNLABELLED])
    batch = Batch(logits, labels, torch.arange(4), None, 4)
    terms = torch.tensor([[1.0, 3.0, 0.0, 0.0]])
    sums = EpochSums(torch.device("cpu"))
    sums.add(terms, LearnerOutput({"ce": terms[0]}, logits, {}), batch)
    metrics = sums.metrics(0, 1)
    assert metrics["train/accuracy"] == 0.5
    assert metrics["train/ce"] == 1.0
    one = EpochSums(torch.device("cpu"))
    batch = Batch(logits, torch.tensor([0, *[UNLABELLED] * 3]), torch.arange(4), None, 4)
    one.add(terms, LearnerOutput({"ce": terms[0]}, logits, {}), batch)
    assert one.metrics(0, 1)["train/accuracy"] == 1.0


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


def batch_of(*labels: int) -> Batch:
    count = len(labels)
    return Batch(torch.zeros(count, 1), torch.tensor(labels), torch.arange(count), None, count)


def test_what_is_shown_are_means_over_the_samples_and_of_diagnostics_over_the_steps() -> None:
    sums = EpochSums(torch.device("cpu"))
    for number, labels in enumerate([(0, 1, 1), (1,)]):  # the last batch is smaller
        terms = {name: torch.full((len(labels),), value + number)
                 for name, value in (("ce", 1.0), ("kd", 10.0))}  # fmt: skip
        said = {"steps": torch.tensor(2.0 + 4 * number), "a": torch.tensor(-1.0)}
        logits = torch.eye(2)[torch.ones(len(labels), dtype=torch.int64)]  # predicts 1
        output = LearnerOutput(terms, logits, said)
        sums.add(torch.stack(list(terms.values())), output, batch_of(*labels))
    metrics = sums.metrics(0, 2)
    expected = {"ce": (3 * 1 + 2) / 4, "kd": (3 * 10 + 11) / 4, "accuracy": 3 / 4}
    expected["loss"] = expected["ce"] + expected["kd"]
    expected = {f"train/{name}": value for name, value in expected.items()}
    assert metrics == pytest.approx({**expected, "steps": (2.0 + 6.0) / 2, "a": -1.0})


def test_the_term_that_broke_first_is_named_with_its_step() -> None:
    """At the end of the epoch neither term is finite, which no longer shows the cause."""
    sums = EpochSums(torch.device("cpu"))
    for ce, kd in ((1.0, 1.0), (1.0, torch.inf), (torch.nan, torch.nan)):
        terms = {"ce": torch.tensor([ce]), "kd": torch.tensor([kd])}
        sums.add(torch.stack(list(terms.values())), LearnerOutput(terms, torch.zeros(1, 2), {}),
                 batch_of(0))  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"'kd' is not finite in epoch 8, step 2 of 3"):
        sums.metrics(7, 3)


def test_a_term_that_broke_on_another_worker_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    terms = {name: torch.ones(1) for name in ("ce", "kd")}
    sums = EpochSums(torch.device("cpu"))
    sums.add(torch.stack(list(terms.values())), LearnerOutput(terms, torch.zeros(1, 2), {}),
             batch_of(0))  # fmt: skip

    def with_another(packed: torch.Tensor) -> torch.Tensor:
        other = packed.clone()
        other[1] = torch.nan
        return packed + other

    monkeypatch.setattr("krscale.training.epoch_sums.sum_over_workers", with_another)
    with pytest.raises(NonFiniteError, match=r"'kd' is not finite in epoch 1, on another worker"):
        sums.metrics(0, 1)
