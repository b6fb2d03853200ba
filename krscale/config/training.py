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
        num_samples: Samples of the epoch.
        global_size: Largest number of samples in a batch, over all workers.
        num_parts: Parts in which a batch is computed (`train.gradient_accumulation`).
    """

    num_samples: int
    global_size: int
    num_parts: int = 1

    @property
    def smallest(self) -> int:
        """Samples of the smallest part of a batch; the steps of an epoch share it evenly.

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
"""Optimisers known to need another learning rate than SGD. Whether any other name is an optimiser
has to be checked first, and needs torch (`krscale.training.optimisers`)."""


def optimiser_key(name: str) -> str:
    """Return a key that is equal for all spellings of an optimiser's name.

    >>> optimiser_key("AdamW"), optimiser_key("adam_w")
    ('adamw', 'adamw')
    """
    return name.lower().replace("_", "")


class TrainConfig(Section):
    """How one student is trained.

    A search may vary these per size, except what its trials share: epochs, workers, device, seed.
    """

    num_epochs: Count = 12
    """Epochs of a full training."""
    global_batch_size: Count = 64
    """Largest number of samples in one optimiser step, over all workers; the steps of an epoch
    share its samples evenly."""
    gradient_accumulation: Count = 1
    """Number of parts in which a student's worker computes its share of a batch, one after another,
    to save memory. The step is that of the whole batch; only batch norm, and methods that compare
    the samples of a batch (`dist`, `pkt`, `crd`, `rkd`), are computed on one part at a time."""
    learning_rate: Annotated[Positive, SearchRange(0.03, 0.5, log=True)] = 0.1
    """Peak learning rate, after a linear warm-up. The default is for SGD: with other optimisers it
    must be given, and a search tries 0.3 to 5 times the given rate."""
    optimizer: str = "sgd"
    """`sgd` (with Nesterov momentum), `adamw`, or the name of another class of `torch.optim`."""
    optimizer_options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the optimiser, e.g. `{betas = [0.9, 0.99]}`."""
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    """How the learning rate falls from the end of the warm-up to the end of the training: to 0
    along a cosine or a line; `step` divides it by 10 after one half and again after three quarters
    of that time; `constant` keeps it."""
    ema_decay: Share = 0.0
    """Decay of an exponential moving average of the weights, e.g. 0.999, which is evaluated, saved
    and exported in place of the last weights; 0 uses no average."""
    momentum: Share = 0.9
    """Momentum of SGD; other optimisers have theirs in `optimizer_options`."""
    weight_decay: Annotated[Weight, SearchRange(1e-5, 5e-3, log=True)] = 5e-4
    """Weight decay, not applied to norms and biases."""
    max_grad_norm: Weight = 2.0
    """Gradients are clipped to this norm, over all weights together; 0 sets no limit."""
    warmup_epochs: Weight = 1.0
    """Epochs of linear warm-up."""
    seed: Seed = 0
    """Seed of the student's initialisation and sample order."""
    num_workers: Count = 1
    """Workers that share one training, in `distill` or in each trial of a search. The result is
    that of one worker except for rounding, which grows with the number of steps; only dropout
    differs, as each worker draws its own, and methods that compare the samples of a batch (`dist`,
    `pkt`, `crd`, `rkd`), which use each worker's share alone."""
    max_workers: Annotated[int, Field(strict=True, ge=0)] = 0
    """Largest number of workers of a trial of a search. Where it is more than `num_workers`, each
    trial takes as many free places of the cluster as there are, between the two numbers, when it
    starts and again after it has lost a worker; 0 keeps `num_workers`. Not for methods that compare
    the samples of a batch, whose result depends on the number of workers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where students train; `auto` takes a GPU when the worker has one."""
    precision: Precision = "fp32"
    """`bf16` trains under autocast; losses are always computed in fp32. `auto` is `bf16` where the
    training device has instructions for it (AMX or AVX512_BF16, GPUs from Ampere on), else
    `fp32`."""
    compile: StrictBool = False
    """Compile the student with torch.compile."""
    channels_last: StrictBool = False
    """Keep images and weights in channels-last memory order; on GPUs only."""
    gpu_share_for_images: Share = 0.1
    """Share of a GPU's memory that the training images of one student may take; if they need more,
    they stay in mapped pages on the host. Several trials may share a GPU, each with its own
    copy."""

    @property
    def most_workers(self) -> int:
        """Largest number of workers of a trial of a search.

        >>> TrainConfig(num_workers=2).most_workers, TrainConfig(max_workers=4).most_workers
        (2, 4)
        """
        return max(self.num_workers, self.max_workers)

    def batch_sizes(self, num_samples: int) -> BatchSizes:
        """Return the sizes of the batches that an epoch of this many samples is cut into."""
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
        """The problem if the optimiser needs a learning rate and none is given; else empty."""
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
    """Refuse a warm-up that is longer than the training, where a user gives one.

    The section itself accepts it, because stored runs of older versions may have it.

    Args:
        train: The section, as the user gives it.
        where: The file or function it was given to, for the message.

    Raises:
        UserError: Naming both numbers.
    """
    if train.warmup_epochs > train.num_epochs:
        raise UserError(
            f"{where}: train.warmup_epochs: {train.warmup_epochs:g} are more than "
            f"train.num_epochs = {train.num_epochs}: the learning rate would never reach its peak."
        )
