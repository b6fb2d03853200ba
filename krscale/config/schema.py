"""Every field of an experiment: its default, its range and what it means."""

from __future__ import annotations

import hashlib
import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

StrictInt = Annotated[int, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=1)]
Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


def parse_capacity(text: str) -> float:
    """Return the share a capacity names: `"1/16"` is 0.0625.

    Raises:
        ValueError: If the text is not a number or fraction in (0, 1].
    """
    try:
        share = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r} is not a fraction such as '1/16' or '0.05'") from None
    if not 0.0 < share <= 1.0:
        raise ValueError(f"a capacity lies in (0, 1], a share of the teacher's parameters: {text}")
    return share


class Section(BaseModel):
    """A table of the experiment file: immutable, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )


class GlyphsConfig(Section):
    """The source `glyphs`: characters of many type faces, warped and noisy, in grey."""

    num_classes: Annotated[int, Field(strict=True, ge=2, le=1000)] = 45
    """Characters to tell apart; the more, the fewer faces have them all (22, 16, then 12)."""
    image_size: Annotated[int, Field(strict=True, ge=8, le=64)] = 16
    """Height and width in pixels."""
    num_train: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 20_000
    """Training images; every class has nearly the same number."""
    num_val: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 4_000
    """Validation images, from faces that are not in training."""
    num_test: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 5_000
    """Test images, from faces that are neither in training nor in validation."""
    warp: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Strength of rotation, shear, stretching and bending; 1 is up to 30 degrees."""
    noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Strength of background texture and pixel noise; 1 hides most glyphs."""
    seed: StrictInt = 0
    """Seed of every image, and of which faces are held out."""


class FilesConfig(Section):
    """The sources `parquet` and `image_folder`: images of one's own, however many."""

    image_column: str = "image"
    """Parquet: column of PNG or JPEG bytes (also within a struct, as `bytes`), or of raw pixels."""
    label_column: str = "label"
    """Parquet: column of whole numbers from 0, or of names of classes."""
    classes: tuple[str, ...] = ()
    """Names of the classes; empty takes all that are found: names sorted, numbers from 0."""
    num_channels: Literal[1, 3] = 3
    """Encoded images are read as grey (1) or RGB (3)."""
    image_size: Annotated[int, Field(strict=True, ge=0)] = 0
    """Encoded images are scaled and cut to a square of so many pixels; 0 leaves them as they are,
    which must be of one size."""
    raw_shape: tuple[Count, ...] = ()
    """Parquet: `[C, H, W]` of raw pixels (fixed-size binary of uint8, channel by channel)."""


class DataConfig(Section):
    """Which images, and how they are cut into train, validation and test."""

    source: str = "digits"
    """`digits` or `glyphs` (embedded), or `cifar10`, `cifar100`, `parquet` or `image_folder`, which
    read `path`."""
    path: str = ""
    """File or folder that the source reads; empty for embedded sources."""
    seed: StrictInt = 0
    """Seed of the split into train, validation and test."""
    val_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.2
    """Share of the non-test images kept for validation; every selection uses it."""
    test_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.25
    """Share of all images kept for test, where the source has no test split of its own."""
    glyphs: GlyphsConfig = GlyphsConfig()
    """Settings of the source `glyphs`."""
    files: FilesConfig = FilesConfig()
    """Settings of the sources `parquet` and `image_folder`."""


class ViewsConfig(Section):
    """Seeded augmentation: the same (seed, sample, view) gives the same pixels everywhere."""

    seed: StrictInt = 0
    """Seed of every random draw of the views."""
    num_views: Count = 4
    """Distinct views of a sample; epoch e trains on view `e mod num_views`."""
    crop_padding: Annotated[int, Field(strict=True, ge=0)] = 0
    """Pixels of zero padding before a random crop back to the image's size."""
    shift: Annotated[int, Field(strict=True, ge=0)] = 1
    """Largest shift in pixels, borders repeated."""
    flip: bool = False
    """Mirror half of the views left to right."""
    cutout: Annotated[int, Field(strict=True, ge=0)] = 0
    """Side in pixels of a square set to zero; 0 for none."""
    jitter: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Strength of brightness, contrast and saturation changes; needs RGB images."""


class ModelConfig(Section):
    """A network: a name of the zoo or `package.module:callable`, and its arguments."""

    model: str = "resnet"
    """A zoo name, or `package.module:callable` taking (num_classes, in_channels, width)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of the model, e.g. `{num_blocks = 2}`."""
    taps: tuple[str, ...] = ()
    """Module paths whose outputs are taps, in depth order; empty takes the model's own."""


class TeacherConfig(ModelConfig):
    """The teacher: loaded from `weights`, or trained once and kept."""

    options: dict[str, Any] = Field(default_factory=lambda: {"num_blocks": 2})
    """Further keyword arguments of the model, e.g. `{num_blocks = 2}`."""
    width: Count = 32
    """The capacity dial of the teacher."""
    weights: str = ""
    """A state dict (`.safetensors`, or `.pt` without code); empty trains the teacher here."""
    num_epochs: Count = 30
    """Epochs of the teacher's own training."""
    learning_rate: Positive = 0.1
    """Peak learning rate of the teacher's own training (SGD, cosine)."""
    weight_decay: Weight = 5e-4
    """Weight decay of the teacher's own training."""
    seed: StrictInt = 0
    """Seed of the teacher's initialisation and sample order."""


class StudentConfig(ModelConfig):
    """The student's architecture; its size is a rung of the ladder."""

    options: dict[str, Any] = Field(default_factory=lambda: {"num_blocks": 1})
    """Further keyword arguments of the model, e.g. `{num_blocks = 1}`."""


class StoreConfig(Section):
    """The teacher's knowledge on disk."""

    temperature: Positive = 4.0
    """Temperature at which probabilities are stored; others are derived from it."""
    top_k: Annotated[int, Field(strict=True, ge=0)] = 0
    """Classes kept per tap and view, the mass of all others spread evenly; where all classes take
    no more room, all are kept. 0 chooses what takes least room and meets `max_error`: the top k,
    or all classes rounded to a few bits; up to 12 classes are kept exactly."""
    max_error: Annotated[float, Field(gt=0.0, le=1.0)] = 0.08
    """Largest mean total variation that this may cost any tap, when `top_k` is 0."""
    shard_rows: Count = 8192
    """Samples in one shard file."""


class LadderConfig(Section):
    """The ladder of student capacities."""

    capacities: tuple[str, ...] = ("1/256", "1/64", "1/16", "1/4")
    """Student sizes as shares of the teacher's parameters, e.g. `"1/16"` or `"0.05"`."""

    @field_validator("capacities")
    @classmethod
    def _shares(cls, capacities: tuple[str, ...]) -> tuple[str, ...]:
        if not capacities:
            raise ValueError("at least one capacity is needed")
        if len({parse_capacity(c) for c in capacities}) != len(capacities):
            raise ValueError(f"a capacity appears twice in {list(capacities)}")
        return capacities


class TrainConfig(Section):
    """How one student is trained; a search may vary any of these per rung."""

    num_epochs: Count = 16
    """Epochs of a full training."""
    global_batch_size: Count = 64
    """Samples of one optimiser step, over all workers together."""
    learning_rate: Positive = 0.1
    """Peak learning rate (SGD with Nesterov momentum, linear warm-up, cosine decay)."""
    momentum: Share = 0.9
    """Momentum of SGD."""
    weight_decay: Weight = 5e-4
    """Weight decay, not applied to norms and biases."""
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 1.0
    """Epochs of linear warm-up."""
    seed: StrictInt = 0
    """Seed of the student's initialisation and sample order."""
    num_workers: Count = 1
    """Workers that share one training; 2 or more run under Ray Train."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where students train; `auto` takes a GPU when the worker has one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` trains under autocast; losses are always computed in fp32."""
    compile: bool = False
    """Compile the student with torch.compile."""
    channels_last: bool = False
    """Keep images and weights in channels-last memory order."""
    gpu_share_for_images: Share = 0.1
    """Share of a GPU's memory that the training images of one student may take; when they are more,
    they stay in mapped pages on the host. Several trials may share a GPU, each with its copy."""


class DistillConfig(Section):
    """What the student learns from: the method, its weights, and KR's own settings."""

    method: str = "kr"
    """A registered method."""
    capacity: str = "1/16"
    """Size of the student that `krscale distill` trains, as a share of the teacher's parameters."""
    ce_weight: Weight = 0.5
    """Weight of the cross-entropy with the labels."""
    temperature: Positive = 4.0
    """Temperature of teacher and student distributions."""
    kd_weight: Weight = 0.9
    """Weight of the KD term (used by methods that have it)."""
    kr_weight: Weight = 2.0
    """Weight of the KR term."""
    granularity: StrictInt | Literal["network", "stage", "layer"] = "stage"
    """Groups of taps: a number from 1 (the whole network) to the number of taps, or a level."""
    sparsity: Share = 0.5
    """Share of each sign's gap that the recoding penalty drops; 0 is ordinary distillation."""
    auxiliary_weight: Weight = 0.5
    """Factor of every group but the deepest."""
    mixing: Literal["arithmetic", "geometric"] = "arithmetic"
    """How the taps of a group are averaged: probabilities, or log-probabilities."""
    parameter_weight: Weight = 0.0
    """Weight of the data-free source: the distribution of the weights themselves."""
    posterior: dict[str, Weight] = Field(default_factory=dict)
    """Methods on the logits that KR is combined with, and their weights: `{dkd = 1.0}`."""
    label_smoothing: Share = 0.1
    """Share of every label that label smoothing spreads over all classes."""
    dkd_weight: Weight = 1.0
    """Weight of the DKD term as a whole."""
    dkd_target_weight: Weight = 1.0
    """Weight within DKD of the divergence between label and not label."""
    dkd_nontarget_weight: Weight = 8.0
    """Weight within DKD of the divergence among the other classes."""
    dist_weight: Weight = 1.0
    """Weight of the DIST term as a whole."""
    dist_inter_weight: Weight = 1.0
    """Weight within DIST of the correlation over the classes of a sample."""
    dist_intra_weight: Weight = 1.0
    """Weight within DIST of the correlation over the samples for a class."""
    logit_standardisation_weight: Weight = 9.0
    """Weight of the KD term on standardised logits."""

    @field_validator("capacity")
    @classmethod
    def _share(cls, capacity: str) -> str:
        parse_capacity(capacity)
        return capacity

    @field_validator("granularity")
    @classmethod
    def _positive(cls, granularity: int | str) -> int | str:
        if isinstance(granularity, int) and granularity < 1:
            raise ValueError("a granularity is at least 1, or one of network, stage, layer")
        return granularity


class SearchConfig(Section):
    """The search: one study per (method, rung), all with the same budget."""

    space: str = "kr"
    """A space shipped in `search_spaces/` (by name) or the path of a TOML file."""
    methods: tuple[str, ...] = ("plain", "kd", "kr")
    """Methods that are tuned and compared, each with the same number of trials."""
    trials_per_rung: Count = 8
    """Trials of every method at every rung."""
    num_final_seeds: Count = 5
    """Fresh seeds with which each winner is trained again; only these are tested."""
    sampler: Literal["tpe", "random"] = "tpe"
    """Optuna sampler of every study."""
    early_stopping: Literal["asha", "none"] = "asha"
    """Early stopping within a rung; trials of different rungs are never compared."""
    grace_epochs: Count = 4
    """Epochs that every trial gets before it may be stopped."""
    reduction_factor: Annotated[int, Field(strict=True, ge=2)] = 2
    """ASHA keeps one trial in this many at each of its milestones."""
    max_failures: Count = 16
    """Failed trials after which the search gives up."""
    cpus_per_trial: Positive = 1.0
    """CPU cores reserved for a trial; its threads are set to the same number."""
    gpus_per_trial: Weight = 0.0
    """GPUs reserved for a trial; fractions pack several trials on one."""
    seed: StrictInt = 0
    """Seed of the samplers."""


class TrackingConfig(Section):
    """Where runs are recorded."""

    uri: str = ""
    """An MLflow tracking URI; empty uses a SQLite file beside the runs."""
    experiment: str = "krscale"
    """Name of the MLflow experiment."""
    enabled: bool = True
    """False records nothing in MLflow; the run folder is complete without it."""


class ClusterConfig(Section):
    """The Ray cluster."""

    address: str = ""
    """`local` starts a private Ray; empty follows Ray's own rule (`RAY_ADDRESS`, else start)."""
    num_cpus: Annotated[int, Field(strict=True, ge=0)] = 0
    """Cores of a Ray started here; 0 lets Ray count them."""
    wait_seconds: Positive = 60.0
    """How long to wait for the workers that were asked for before giving up."""


def _default_storage() -> str:
    return os.environ.get("KRSCALE_STORAGE_PATH", "runs")


class Experiment(Section):
    """Everything that determines a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "digits"
    """Name of the run; its folder is `storage_path/name`."""
    storage_path: str = Field(default_factory=_default_storage)
    """Folder of all runs, data, teachers and stores; default `$KRSCALE_STORAGE_PATH` or `runs`."""
    data: DataConfig = DataConfig()
    views: ViewsConfig = ViewsConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    store: StoreConfig = StoreConfig()
    ladder: LadderConfig = LadderConfig()
    train: TrainConfig = TrainConfig()
    distill: DistillConfig = DistillConfig()
    search: SearchConfig = SearchConfig()
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()

    @field_validator("storage_path")
    @classmethod
    def _absolute(cls, storage_path: str) -> str:
        # Workers have working directories of their own.
        return str(Path(storage_path).expanduser().resolve())

    @property
    def run_path(self) -> Path:
        """Absolute folder of this run."""
        return Path(self.storage_path) / self.name

    @property
    def cache_path(self) -> Path:
        """Absolute folder of what runs share: data, teachers and stores, each by fingerprint."""
        return Path(self.storage_path) / "cache"

    def fingerprint(self) -> str:
        """Hash of every field that changes results; not of where they are kept or how shown."""
        content = self.model_dump(mode="json", exclude={"storage_path", "tracking", "cluster"})
        return fingerprint(content)


def fingerprint(content: Any) -> str:
    """Return 16 hexadecimal digits that identify JSON-serialisable content."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
