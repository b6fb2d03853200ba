"""Teacher, student, the ladder of student sizes, and the store of the teacher's knowledge."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, field_validator, model_validator

from krscale.config.fields import (
    Count,
    Names,
    PathText,
    Positive,
    Section,
    Seed,
    Side,
    SomeNames,
    Temperature,
    Weight,
    Width,
    parse_capacity,
    refuse_repeats,
)

_NEWER_OF_TEACHERS = ("output_key", "stage_ends", "tap_layout", "weights_key")
"""Fields that were added after teachers had already been stored by fingerprint."""


def _listed(value: Any) -> Any:
    """Turn a single number into a list of one."""
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _options(num_blocks: int, so_far: dict[str, Any]) -> dict[str, Any]:
    """Return the default options of a network; the user's own and libraries' networks have none."""
    return {} if ":" in so_far.get("model", "") else {"num_blocks": num_blocks}


Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class PreprocessingConfig(Section):
    """How the pixels of a view become the input of a network; teacher and student may differ in it.

    Settings that are not given come from the network's own metadata, if it starts with weights
    (timm's `pretrained_cfg`, torchvision's weights, a Hugging Face folder) or has an attribute
    `preprocessing`. Otherwise the data's own normalisation and size are used. The network's own
    size is used only if it is not trained here.
    """

    normalisation: Literal["auto", "data", "imagenet", "half", "none"] = "auto"
    """Mean and standard deviation by name: `data` (of the training images), `imagenet`, `half`
    (0.5 and 0.5: pixels in -1..1), `none`; `auto` takes the network's own, or `data`."""
    mean: Annotated[tuple[Number, ...], BeforeValidator(_listed)] = ()
    """Mean of each channel in the network's channel order, or one number for all, in units of
    `pixel_range`; given together with `std`, in place of `normalisation`."""
    std: Annotated[tuple[Positive, ...], BeforeValidator(_listed)] = ()
    """Standard deviation of each channel, likewise."""
    pixel_range: Literal["auto", "0..1", "0..255"] = "auto"
    """Range of pixels before they are normalised; `auto` takes the network's own, or `0..1`."""
    channel_order: Literal["auto", "rgb", "bgr"] = "auto"
    """Order of the network's input channels; `auto` takes the network's own, or `rgb`."""
    input_size: Annotated[tuple[Side, ...], BeforeValidator(_listed), Field(max_length=2)] = ()
    """Height and width of the network's input, or one number for both: the view is scaled until it
    covers them, and the excess is cropped. Empty takes the network's own, or the data's size."""
    interpolation: Literal["auto", "nearest", "bilinear", "bicubic", "lanczos"] = "auto"
    """How views are scaled to `input_size`; `auto` takes the network's own, or `bilinear`."""

    @model_validator(mode="after")
    def _one_normalisation(self) -> PreprocessingConfig:
        if bool(self.mean) != bool(self.std):
            raise ValueError("mean and std go together; one of them is missing")
        if self.mean and self.normalisation != "auto":
            raise ValueError(
                f"mean and std stand for normalisation = {self.normalisation!r}; give one of them"
            )
        return self


class ModelConfig(Section):
    """A network of the zoo, of a library or of your own, with its arguments."""

    model: str = "resnet"
    """A zoo name; `timm:NAME`, `torchvision:NAME` or `hf:FOLDER`; or `package.module:callable`,
    which gets those of the number of classes, the channels and the width that it takes."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of the model, e.g. `{num_blocks = 2}`."""
    taps: Names = ()
    """Module paths whose outputs are taps, in depth order (any other order is refused); empty takes
    the model's own, or finds them by running it."""
    stage_ends: tuple[Count, ...] = ()
    """For each stage, the number of its last tap in `taps`, counted from 1; the classifier is the
    last one. Empty takes the model's own; if `taps` are listed, each of them is a stage."""
    output_key: str = ""
    """Name or position of the logits among several outputs, e.g. `"logits"` or `"0"`; empty takes
    `logits`, or the only tensor."""
    tap_layout: Literal["auto", "channels_first", "channels_last"] = "auto"
    """Where the channels of all taps with positions are; `auto` determines it, with an error if it
    cannot."""
    preprocessing: PreprocessingConfig = PreprocessingConfig()

    @model_validator(mode="after")
    def _stages_of_taps(self) -> ModelConfig:
        ends, num_taps = self.stage_ends, len(self.taps) + 1
        if ends and not self.taps:
            raise ValueError("stage_ends counts the taps of a list; list taps as well")
        rising = all(one < two for one, two in pairwise((0, *ends)))
        if ends and (not rising or ends[-1] != num_taps):
            raise ValueError(
                f"stage_ends must rise and end with {num_taps}, the classifier after "
                f"{num_taps - 1} taps (got {', '.join(map(str, ends))})"
            )
        return self


class TeacherConfig(ModelConfig):
    """The teacher: loaded from `weights`, or trained once and kept."""

    options: dict[str, Any] = Field(default_factory=partial(_options, 2))
    """Further keyword arguments of the model; none by default if it is not krscale's own."""
    width: Width = 32
    """The capacity dial of the teacher."""
    weights: PathText = ""
    """A state dict (safetensors, or `torch.save` without code, with any file name); `own` keeps the
    weights that the model is built with; empty trains the teacher here."""
    weights_key: str = ""
    """Which weights of the file to take if there are several: a table such as `model_ema`, or a
    prefix of names; empty takes the only ones that fit."""
    num_epochs: Count = 30
    """Epochs of the teacher's own training."""
    learning_rate: Positive = 0.1
    """Peak learning rate of the teacher's own training (SGD, cosine)."""
    weight_decay: Weight = 5e-4
    """Weight decay of the teacher's own training."""
    seed: Seed = 0
    """Seed of the teacher's initialisation and sample order."""
    num_workers: Count = 1
    """Number of workers that share the teacher's own training; 2 or more use Ray Train. The result
    is that of one worker except for rounding, and a stored teacher is reused whatever the number of
    workers that trained it."""
    allow_poor: StrictBool = False
    """Whether to accept a teacher that is no better than guessing, is worse than its own taps, or
    would be better with another preprocessing."""

    def identity(self) -> dict[str, Any]:
        """Return what identifies a teacher, without newer fields that are not used.

        This way, teachers that older versions of krscale stored are still found.
        """
        # The preprocessing is added by the code that resolves it.
        content = self.model_dump(
            mode="json", exclude={"preprocessing", "allow_poor", "num_workers"}
        )
        plain = TeacherConfig().model_dump(mode="json", include=set(_NEWER_OF_TEACHERS))
        return {k: v for k, v in content.items() if k not in plain or v != plain[k]}


class StudentConfig(ModelConfig):
    """The student's architecture; its size is one of the ladder's."""

    options: dict[str, Any] = Field(default_factory=partial(_options, 1))
    """Further keyword arguments of the model; none by default if it is not krscale's own."""
    width_multiple: Annotated[int, Field(strict=True, ge=1, le=1024)] = 1
    """Widths of students are multiples of this. Processors compute channels in blocks (16 of them
    with AVX-512, commonly 8 elsewhere), and a network one channel wider than a block can
    take twice the time."""


class StoreConfig(Section):
    """The teacher's knowledge on disk."""

    temperature: Temperature = 4.0
    """Temperature at which probabilities are stored; those at other temperatures are derived from
    them."""
    top_k: Annotated[int, Field(strict=True, ge=0)] = 0
    """Number of classes stored per tap and view; the mass of all others is spread evenly. If all
    classes take no more space, all are stored. 0 chooses what takes the least space and meets
    `max_error`: the top k, or all classes rounded to a few bits; up to 12 classes are stored
    exactly."""
    max_error: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = 0.08
    """Largest mean total variation that this may cost any tap if `top_k` is 0."""
    shard_rows: Count = 8192
    """Number of samples in one shard file."""
    teacher_precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: the teacher runs under autocast while its distributions over the classes are stored,
    if this and the rounding together cost no tap more than `max_error` on sampled views. Otherwise
    it runs in fp32, and a note says so. Stores of features always use fp32."""

    def identity(self) -> dict[str, Any]:
        """Return what the content of a store depends on, without newer fields at their defaults."""
        content = self.model_dump(mode="json")
        if content["teacher_precision"] == "fp32":
            del content["teacher_precision"]
        return content


class LadderStudent(ModelConfig):
    """One student of a ladder that you define: a table `[[ladder.students]]`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9._-]*$", max_length=60)]
    """Its name in tables, figures and folders; it begins with a letter."""
    width: Width = 1
    """The capacity dial, for networks that have one."""
    weights: PathText = ""
    """A state dict that it starts from (as `teacher.weights`); empty, or `own`, starts from the
    weights that it is built with."""
    weights_key: str = ""
    """Which weights of the file to take if there are several (as `teacher.weights_key`)."""


class LadderConfig(Section):
    """The ladder of student capacities."""

    capacities: SomeNames = ("1/256", "1/64", "1/16", "1/4")
    """Student sizes as shares of the teacher's parameters, e.g. `"1/16"` or `"0.05"`."""
    students: tuple[LadderStudent, ...] = ()
    """Students of your own, one table each with `name`, `model`, `options`, `weights`, ...; they
    replace `capacities` and `[student]`."""

    @field_validator("students")
    @classmethod
    def _names(cls, students: tuple[LadderStudent, ...]) -> tuple[LadderStudent, ...]:
        refuse_repeats([student.name for student in students], str.lower)
        return students

    @field_validator("capacities")
    @classmethod
    def _shares(cls, capacities: tuple[str, ...]) -> tuple[str, ...]:
        refuse_repeats(capacities, parse_capacity)
        return capacities
