"""Every metric that a network is evaluated by, one entry each; new metrics are added here.

The entries of `METRICS` are computed whenever a network is evaluated, and recorded with every epoch
of a trial as `val/NAME`. They may be named in `search.objectives` as `val/NAME`, and are displayed
as their entry defines. Importing this module does not need torch: the config checks names with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Direction = Literal["maximize", "minimize"]
Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Metric:
    """A metric of predictions. Its value is a mean over samples.

    Attributes:
        name: `NAME` in `val/NAME`.
        direction: Whether larger or smaller values are better.
        total: Maps logits `[B, K]` in fp32 and labels `[B]` to the sum over the samples, a scalar.
            Sums of batches and of workers are added in float64 and divided by the number of
            samples.
        shown: Whether it is displayed as a percentage or as a plain number.
        min_classes: With fewer classes it carries no information and is left out.
        breaks_ties: Whether it decides between trials that are equal in all objectives.
    """

    name: str
    direction: Direction
    total: Callable[[Tensor, Tensor], Tensor]
    shown: Literal["percent", "number"] = "percent"
    min_classes: int = 2
    breaks_ties: bool = False

    def text(self, value: float) -> str:
        """Return a value as displayed, without unit: `97.3` for 0.973 as a percentage."""
        return f"{100 * value:.1f}" if self.shown == "percent" else f"{value:.4g}"

    def gain(self, value: float) -> float:
        """Return the value, negated if smaller is better, so that larger gains are better."""
        return value if self.direction == "maximize" else -value


def _num_correct(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(dim=1) == labels).sum()


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    from torch.nn import functional as F

    return F.cross_entropy(logits, labels, reduction="sum")


def _num_among_best_five(logits: Tensor, labels: Tensor) -> Tensor:
    best = logits.topk(5, dim=1).indices  # [B, 5]
    return (best == labels[:, None]).sum()


ACCURACY = Metric("accuracy", "maximize", _num_correct)
LOSS = Metric("loss", "minimize", _cross_entropy, shown="number", breaks_ties=True)
TOP5_ACCURACY = Metric("top5_accuracy", "maximize", _num_among_best_five, min_classes=6)

METRICS: dict[str, Metric] = {metric.name: metric for metric in (ACCURACY, LOSS, TOP5_ACCURACY)}
"""Every metric by name."""


def metric_key(split: Split, metric: Metric) -> str:
    """Return the name under which a metric of a split is recorded, e.g. `val/accuracy`."""
    return f"{split}/{metric.name}"


TRAIN_ACCURACY = metric_key("train", ACCURACY)
TRAIN_LOSS = metric_key("train", LOSS)
VAL_ACCURACY = metric_key("val", ACCURACY)
"""Early stopping and the choice of winners use it; it is first in `search.objectives`."""
TEST_ACCURACY = metric_key("test", ACCURACY)


def metrics_for(num_classes: int) -> list[Metric]:
    """Return the metrics that carry information with this number of classes.

    Example:
        >>> [[metric.name for metric in metrics_for(classes)] for classes in (5, 6)]
        [['accuracy', 'loss'], ['accuracy', 'loss', 'top5_accuracy']]
    """
    return [metric for metric in METRICS.values() if num_classes >= metric.min_classes]


def val_metrics() -> dict[str, Metric]:
    """Return every metric by its name on the validation split, e.g. `val/accuracy`.

    Example:
        >>> {name: metric.direction for name, metric in val_metrics().items()}
        {'val/accuracy': 'maximize', 'val/loss': 'minimize', 'val/top5_accuracy': 'maximize'}
    """
    return {metric_key("val", metric): metric for metric in METRICS.values()}
