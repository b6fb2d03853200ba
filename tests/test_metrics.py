"""Metrics: their values, bit for bit as before, and that a new one takes one entry."""

import io
from pathlib import Path

import pytest
import torch
from ladder_play import SIZES, Assignment, experiment, ladder
from optuna.study import StudyDirection
from optuna.trial import TrialState
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from krscale.config import DataConfig, load
from krscale.data import Dataset, prepare_data
from krscale.data.augmentation.views import normalise
from krscale.errors import UserError
from krscale.metrics import (
    ACCURACY,
    LOSS,
    METRICS,
    TOP5_ACCURACY,
    VAL_ACCURACY,
    Metric,
    metrics_for,
)
from krscale.models.resnet import resnet
from krscale.parallel import Workers
from krscale.report import FrontTrial
from krscale.report.front import front_table
from krscale.search.studies.objectives import check_objectives, merit
from krscale.search.studies.size_resolver import FixedSizeResolver
from krscale.training.loop import EVALUATION_BATCH_SIZE, evaluate


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    # More images than one batch of an evaluation holds.
    config = DataConfig(val_fraction=0.49, test_fraction=0.01, source="glyphs")
    small = config.glyphs.model_copy(update={"num_train": 60, "num_val": 1500, "num_test": 60})
    return prepare_data(config.model_copy(update={"glyphs": small}), tmp_path_factory.mktemp("d"))


@pytest.fixture(scope="module")
def model(dataset: Dataset) -> nn.Module:
    torch.manual_seed(0)
    channels = dataset.image_shape[0]
    return resnet(dataset.num_classes, in_channels=channels, width=4, num_blocks=1).eval()


def test_accuracy_and_loss_have_every_bit_that_they_had(dataset: Dataset, model: nn.Module) -> None:
    """Compare with the formula from before the list of metrics existed, batch by batch."""
    split = dataset.split("val")
    totals = torch.zeros(3, dtype=torch.float64)
    for first in range(0, len(split.labels), EVALUATION_BATCH_SIZE):
        rows = slice(first, first + EVALUATION_BATCH_SIZE)
        pixels, labels = torch.tensor(split.images[rows]), torch.tensor(split.labels[rows])
        with torch.no_grad():
            logits = model(normalise(pixels, dataset.mean, dataset.std)).float()
        totals[0] += (logits.argmax(dim=1) == labels).sum()
        totals[1] += F.cross_entropy(logits, labels, reduction="sum")
        totals[2] += len(labels)
    correct, loss, count = totals.tolist()
    found = evaluate(model, dataset, split, Workers.alone())
    assert len(split.labels) > EVALUATION_BATCH_SIZE
    assert (found["accuracy"], found["loss"]) == (correct / count, loss / count)


def test_top_five_by_hand() -> None:
    logits = torch.tensor([
        [9.0, 8.0, 7.0, 6.0, 5.0, 4.0],  # the label is last of six
        [9.0, 8.0, 7.0, 6.0, 5.0, 4.0],  # fifth
        [0.0, 1.0, 0.0, 0.0, 0.0, 0.0],  # first
        [float("nan")] * 6,
    ])  # fmt: skip
    labels = torch.tensor([5, 4, 1, 5])
    assert TOP5_ACCURACY.total(logits[:3], labels[:3]).item() == 2
    assert TOP5_ACCURACY.total(logits, labels).item() <= 3, "who says nothing is not right"


def test_top_five_says_nothing_of_five_classes() -> None:
    assert metrics_for(5) == [ACCURACY, LOSS]
    assert metrics_for(6) == [ACCURACY, LOSS, TOP5_ACCURACY]


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_sums_of_shares_are_the_sum_of_all(metric: Metric) -> None:
    """Workers add up the sums over their shares."""
    torch.manual_seed(1)
    logits, labels = torch.randn(50, 12), torch.randint(12, (50,))
    whole = metric.total(logits, labels)
    parts = [metric.total(logits[rows], labels[rows]) for rows in (slice(17), slice(17, 50))]
    assert whole.shape == ()
    torch.testing.assert_close(sum(parts), whole)
    assert metric.total(logits[:0], labels[:0]).item() == 0, "a worker may have no share"


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None]).sum()


@pytest.fixture
def margin(monkeypatch: pytest.MonkeyPatch) -> Metric:
    """A metric that a test adds with one entry."""
    metric = Metric("margin", "minimize", _margin, shown="number", breaks_ties=True)
    monkeypatch.setitem(METRICS, "margin", metric)
    return metric


def test_a_new_metric_is_evaluated(dataset: Dataset, model: nn.Module, margin: Metric) -> None:
    split = dataset.split("test")
    images = normalise(torch.tensor(split.images), dataset.mean, dataset.std)
    with torch.no_grad():
        logits = model(images)
    expected = logits[torch.arange(len(split.labels)), torch.tensor(split.labels)].double().mean()
    found = evaluate(model, dataset, split, Workers.alone())
    assert found["margin"] == pytest.approx(expected.item(), rel=1e-5)


def finish_all(found, values: list[dict[str, float]]) -> None:
    """Finish the first trials of the study plain@1/4 with these metrics."""
    for metrics in values:
        while isinstance(upcoming := found.next(), Assignment):
            of_study = upcoming.key.capacity == "1/4"
            whole = {"val/loss": 0.5, "epoch": 4.0, **(metrics if of_study else values[0])}
            found.report(upcoming, whole)
            found.finish(upcoming, TrialState.COMPLETE, whole)
            if of_study:
                break


def test_a_new_metric_is_an_objective_and_shown(tmp_path: Path, margin: Metric) -> None:
    config = experiment(
        **{"search.methods": ["plain"], "search.early_stopping": "none",
           "search.objectives": ["val/accuracy", "val/margin"]}
    )  # fmt: skip
    resolver = FixedSizeResolver({size.capacity: size for size in SIZES})
    found = ladder(tmp_path, config, size_resolver=resolver)
    finish_all(
        found,
        [
            {"val/accuracy": 0.5, "val/margin": 3.0},
            {"val/accuracy": 0.9, "val/margin": 3.0},
            {"val/accuracy": 0.9, "val/margin": 2.0},
        ],
    )
    study = next(s for key, s in found.optuna_studies.items() if key.name == "plain@1/4")
    assert study.directions == [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
    assert [trial.number for trial in study.best_trials] == [2]
    assert study.trials[2].values == [0.9, 2.0]
    winner = found.winner("plain", "1/4")
    assert winner is not None
    assert winner.number == 2


def test_a_new_metric_breaks_ties(tmp_path: Path, margin: Metric) -> None:
    found = ladder(tmp_path, experiment(**{"search.methods": ["plain"]}))
    finish_all(
        found,
        [{"val/accuracy": 0.5, "val/margin": 0.0},
         *({"val/accuracy": 0.9, "val/margin": value} for value in (3.0, 1.0, 2.0))],
    )  # fmt: skip
    winner = found.winner("plain", "1/4")
    assert winner is not None
    assert winner.number == 2
    assert merit(found.optuna_studies[next(iter(found.studies))], winner) == (0.9, -0.5, -1.0)


def test_metrics_in_the_table_of_the_front_are_numbers_or_percentages(margin: Metric) -> None:
    from report.test_curve_result import curve, result, size

    objectives = {VAL_ACCURACY: 0.9, "val/top5_accuracy": 0.973, "val/margin": 1.25, "of old": 2.0}
    front = [FrontTrial(number=0, objectives=objectives, settings={})]
    shown = Console(width=120, file=io.StringIO())
    table = front_table(
        curve(size("1/4", 9, kr=result([0.5], [0.5], front=front))), ascii_only=True
    )
    shown.print(table)
    text = shown.file.getvalue()
    for part in ("validation %", "val/top5_accuracy %", "val/margin ", "90.0", "97.3", "1.25"):
        assert part in text, part


def test_an_objective_that_these_classes_cannot_have_is_refused() -> None:
    names = [VAL_ACCURACY, "val/top5_accuracy"]
    config = load(None, [f"search.objectives={names}", "search.early_stopping=none"])
    check_objectives(config.search.objectives, 6)
    with pytest.raises(UserError, match=r"'val/top5_accuracy' needs at least 6 classes; .* have 5"):
        check_objectives(config.search.objectives, 5)
