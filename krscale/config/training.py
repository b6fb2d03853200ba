"""How one student is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, StrictBool, ValidationInfo, field_validator, model_validator

from krscale.config.fields import Count, Positive, Section, Seed, Share, Weight
from krscale.config.ranges import SearchRange
from krscale.errors import UserError

NO_CHANNELS_LAST_ON_CPU = (
    "true needs a GPU (train.device = 'cuda'): in this memory order, the gradient of a strided 1x1 "
    "convolution of fewer than 8 channels writes past its buffer on CPUs, and aborts the process"
)
"""Seen with torch 2.13 (oneDNN, jit_1x1, AVX2): `docs/log.md`, 2026-11-25."""


Precision = Literal["fp32", "bf16", "auto"]


class BatchSizes(NamedTuple):
    """The sizes of the batches that an epoch is cut into.

    Attributes:
        num_samples: Of the epoch.
        global_size: Samples of a batch at most, over all workers.
        num_parts: In which a batch is computed (`train.gradient_accumulation`).
    """

    num_samples: int
    global_size: int
    num_parts: int = 1

    @property
    def smallest(self) -> int:
        """Samples of the smallest part of a batch; an epoch is shared evenly over its steps.

        >>> BatchSizes(101, 25).smallest, BatchSizes(101, 25, num_parts=4).smallest
        (20, 5)
        """
        batch = self.num_samples // -(-self.num_samples // self.global_size)
        return max(1, batch // self.num_parts)


_WITH_OWN_RATE = frozenset(
    {
        *("adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw"),
        *("asgd", "nadam", "radam", "rmsprop", "rprop"),
    }
)
"""Optimisers known to need another learning rate than SGD. Of any other name it is known only with
torch whether it is one at all, which comes first (`krscale.training.optimisers`)."""


def optimiser_key(name: str) -> str:
    """Return what all ways to write an optimiser's name have in common.

    >>> optimiser_key("AdamW"), optimiser_key("adam_w")
    ('adamw', 'adamw')
    """
    return name.lower().replace("_", "")


class TrainConfig(Section):
    """How one student is trained.

    A search may vary these per size, but what its trials share: epochs, workers, device, seed.
    """

    num_epochs: Count = 12
    """Epochs of a full training."""
    global_batch_size: Count = 64
    """Samples of one optimiser step at most, over all workers; an epoch is shared evenly over its
    steps."""
    gradient_accumulation: Count = 1
    """Parts, one after another, in which a student's worker computes its share of a batch, for less
    memory. The step is that of the whole batch; only batch norm, and methods that compare the
    samples of a batch (`dist`, `pkt`, `crd`, `rkd`), meet a part at a time."""
    learning_rate: Annotated[Positive, SearchRange(0.03, 0.5, log=True)] = 0.1
    """Peak learning rate, after a linear warm-up. The default is that of SGD: other optimisers need
    one that is given, and a search looks from 0.3 times to 5 times of it."""
    optimizer: str = "sgd"
    """`sgd` (with Nesterov momentum), `adamw`, or another class of `torch.optim` by its name."""
    optimizer_options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the optimiser, e.g. `{betas = [0.9, 0.99]}`."""
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    """How the learning rate falls from the end of the warm-up to that of the training: to 0 along a
    cosine or a line, to a tenth at one half of that way and again at three quarters, or not at
    all."""
    ema_decay: Share = 0.0
    """Decay of an exponential moving average of the weights, e.g. 0.999, which is judged, kept and
    exported in place of the last weights; 0 keeps none."""
    momentum: Share = 0.9
    """Momentum of SGD; other optimisers have theirs in `optimizer_options`."""
    weight_decay: Annotated[Weight, SearchRange(1e-5, 5e-3, log=True)] = 5e-4
    """Weight decay, not applied to norms and biases."""
    max_grad_norm: Weight = 2.0
    """Longer gradients are shortened to this norm, over all weights together; 0 sets no limit."""
    warmup_epochs: Weight = 1.0
    """Epochs of linear warm-up."""
    seed: Seed = 0
    """Seed of the student's initialisation and sample order."""
    num_workers: Count = 1
    """Workers that share one training, of `distill` or of each trial of a search. The result is
    that of one worker but for rounding, which grows with the number of steps; only methods that
    compare the samples of a batch (`dist`, `pkt`, `crd`, `rkd`) meet a worker's share at a time."""
    max_workers: Annotated[int, Field(strict=True, ge=0)] = 0
    """Most workers of a trial of a search. Where it is more than `num_workers`, each trial takes as
    many of the cluster's free places as there are between the two when it starts, and again after a
    worker was lost; 0 leaves it at `num_workers`. Not for methods that compare the samples of a
    batch, whose result depends on the number of workers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where students train; `auto` takes a GPU when the worker has one."""
    precision: Precision = "fp32"
    """`bf16` trains under autocast; losses are always computed in fp32. `auto` is `bf16` where the
    device that trains has instructions for it (AMX or AVX512_BF16, GPUs from Ampere on), else
    `fp32`."""
    compile: StrictBool = False
    """Compile the student with torch.compile."""
    channels_last: StrictBool = False
    """Keep images and weights in channels-last memory order; on GPUs only."""
    gpu_share_for_images: Share = 0.1
    """Share of a GPU's memory that the training images of one student may take; when they are more,
    they stay in mapped pages on the host. Several trials may share a GPU, each with its copy."""

    @property
    def most_workers(self) -> int:
        """Workers that a trial of a search has at most.

        >>> TrainConfig(num_workers=2).most_workers, TrainConfig(max_workers=4).most_workers
        (2, 4)
        """
        return max(self.num_workers, self.max_workers)

    def batch_sizes(self, num_samples: int) -> BatchSizes:
        """Return the sizes of the batches that an epoch of so many samples is cut into."""
        return BatchSizes(num_samples, self.global_batch_size, self.gradient_accumulation)

    @model_validator(mode="after")
    def _no_empty_part(self) -> TrainConfig:
        if self.gradient_accumulation > self.global_batch_size:
            raise ValueError(
                f"train.gradient_accumulation: {self.gradient_accumulation} parts of a batch of "
                f"{self.global_batch_size} samples (train.global_batch_size) would be empty"
            )
        return self

    @model_validator(mode="after")
    def _more_than_fewest(self) -> TrainConfig:
        if 0 < self.max_workers < self.num_workers:
            raise ValueError(
                f"train.max_workers: {self.max_workers} is less than train.num_workers = "
                f"{self.num_workers}; give as many or more, or 0 for as many"
            )
        return self

    @model_validator(mode="after")
    def _own_learning_rate(self) -> TrainConfig:
        if optimiser_key(self.optimizer) in _WITH_OWN_RATE and (problem := self.missing_rate):
            raise ValueError(problem)
        return self

    @property
    def missing_rate(self) -> str:
        """What is wrong where the optimiser needs a learning rate of its own and none is given."""
        if optimiser_key(self.optimizer) == "sgd" or "learning_rate" in self.model_fields_set:
            return ""
        return (
            f"train.learning_rate must be given with train.optimizer = {self.optimizer!r}: the "
            f"default is that of SGD; adamw often takes 0.001"
        )

    @field_validator("channels_last")
    @classmethod
    def _not_on_cpu(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("device") == "cpu":
            raise ValueError(NO_CHANNELS_LAST_ON_CPU)
        return value


def refuse_long_warmup(train: TrainConfig, where: str) -> None:
    """Refuse a warm-up that the training ends before, where it is asked for.

    The section itself takes one: runs of older versions may have it, and are read.

    Args:
        train: As it is asked for.
        where: The file or function it was given to, for the message.

    Raises:
        UserError: Naming both numbers.
    """
    if train.warmup_epochs > train.num_epochs:
        raise UserError(
            f"{where}: train.warmup_epochs: {train.warmup_epochs:g} are more than "
            f"train.num_epochs = {train.num_epochs}: the learning rate would never reach its peak."
        )
