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
"""Fields that teachers have got since some were kept by fingerprint."""


def _listed(value: Any) -> Any:
    """Let one number stand for a list of one."""
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _options(num_blocks: int, so_far: dict[str, Any]) -> dict[str, Any]:
    """Return the default options of a network: one of one's own or of a library has none."""
    return {} if ":" in so_far.get("model", "") else {"num_blocks": num_blocks}


Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class PreprocessingConfig(Section):
    """From the pixels of a view to the input of a network; teacher and student may differ in it.

    What is left as it is comes from the network's own metadata where it starts with weights (timm's
    `pretrained_cfg`, torchvision's weights, a Hugging Face folder) or has an attribute
    `preprocessing`, else it is the data's own normalisation at the data's own size. The size is its
    own only where it is not trained here.
    """

    normalisation: Literal["auto", "data", "imagenet", "half", "none"] = "auto"
    """Mean and standard deviation by name: `data` (of the training images), `imagenet`, `half`
    (0.5 and 0.5: pixels in -1..1), `none`; `auto` as the network itself says, or `data`."""
    mean: Annotated[tuple[Number, ...], BeforeValidator(_listed)] = ()
    """Mean of each channel in the order that the network takes them, or one number for all, in
    units of `pixel_range`; with `std`, in place of `normalisation`."""
    std: Annotated[tuple[Positive, ...], BeforeValidator(_listed)] = ()
    """Standard deviation of each channel, likewise."""
    pixel_range: Literal["auto", "0..1", "0..255"] = "auto"
    """What pixels are before they are normalised; `auto` as the network itself says, or `0..1`."""
    channel_order: Literal["auto", "rgb", "bgr"] = "auto"
    """Order of the channels that the network takes; `auto` as it says itself, or `rgb`."""
    input_size: Annotated[tuple[Side, ...], BeforeValidator(_listed), Field(max_length=2)] = ()
    """Height and width that the network takes, or one number for both: the view is scaled until it
    covers them, and what is over is cut; empty as the network itself says, or the data's size."""
    interpolation: Literal["auto", "nearest", "bilinear", "bicubic", "lanczos"] = "auto"
    """How views are scaled to `input_size`; `auto` as the network itself says, or `bilinear`."""

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
    """A network: of the zoo, of a library or of one's own, and its arguments."""

    model: str = "resnet"
    """A zoo name; `timm:NAME`, `torchvision:NAME` or `hf:FOLDER`; or `package.module:callable`,
    which gets the number of classes, the channels and the width, as far as it takes them."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of the model, e.g. `{num_blocks = 2}`."""
    taps: Names = ()
    """Module paths whose outputs are taps, in depth order (another is refused); empty takes
    the model's own, or finds them by running it."""
    stage_ends: tuple[Count, ...] = ()
    """For each stage the number of its last tap in `taps`, counted from 1; the classifier is the
    last one. Empty takes the model's own; of `taps` that are listed here, each is a stage."""
    output_key: str = ""
    """Name or position of the logits among several outputs, e.g. `"logits"` or `"0"`; empty takes
    `logits`, or the only tensor."""
    tap_layout: Literal["auto", "channels_first", "channels_last"] = "auto"
    """Where the channels of all taps with positions are; `auto` finds it out, and asks where it
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
    """Further keyword arguments of the model; none by default where it is not krscale's own."""
    width: Width = 32
    """The capacity dial of the teacher."""
    weights: PathText = ""
    """A state dict (safetensors, or `torch.save` without code, by any name); `own` keeps the
    weights that the model is built with; empty trains the teacher here."""
    weights_key: str = ""
    """Which weights of the file, where there are several: a table such as `model_ema`, or the
    beginning of names; empty takes the only ones that fit."""
    num_epochs: Count = 30
    """Epochs of the teacher's own training."""
    learning_rate: Positive = 0.1
    """Peak learning rate of the teacher's own training (SGD, cosine)."""
    weight_decay: Weight = 5e-4
    """Weight decay of the teacher's own training."""
    seed: Seed = 0
    """Seed of the teacher's initialisation and sample order."""
    num_workers: Count = 1
    """Workers that share the teacher's own training, through Ray Train from 2 on. The result is
    that of one worker but for rounding; a teacher that is kept is taken whoever trained it."""
    allow_poor: StrictBool = False
    """Whether a teacher may teach that is no better than guessing, or worse than its own taps, or
    that would be better with another preprocessing."""

    def identity(self) -> dict[str, Any]:
        """Return what tells one teacher from another, without newer fields that are not used.

        So that teachers which an older krscale kept are found again.
        """
        # What its preprocessing comes to is told apart by whoever resolves it.
        content = self.model_dump(
            mode="json", exclude={"preprocessing", "allow_poor", "num_workers"}
        )
        plain = TeacherConfig().model_dump(mode="json", include=set(_NEWER_OF_TEACHERS))
        return {k: v for k, v in content.items() if k not in plain or v != plain[k]}


class StudentConfig(ModelConfig):
    """The student's architecture; its size is a size of the ladder."""

    options: dict[str, Any] = Field(default_factory=partial(_options, 1))
    """Further keyword arguments of the model; none by default where it is not krscale's own."""
    width_multiple: Annotated[int, Field(strict=True, ge=1, le=1024)] = 1
    """Widths of students are multiples of this. Processors compute channels in blocks (16 of them
    with AVX-512, commonly 8 elsewhere), and a network one channel wider than a block can
    take twice the time."""


class StoreConfig(Section):
    """The teacher's knowledge on disk."""

    temperature: Temperature = 4.0
    """Temperature at which probabilities are stored; others are derived from it."""
    top_k: Annotated[int, Field(strict=True, ge=0)] = 0
    """Classes kept per tap and view, the mass of all others spread evenly; where all classes take
    no more room, all are kept. 0 chooses what takes least room and meets `max_error`: the top k,
    or all classes rounded to a few bits; up to 12 classes are kept exactly."""
    max_error: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = 0.08
    """Largest mean total variation that this may cost any tap, when `top_k` is 0."""
    shard_rows: Count = 8192
    """Samples in one shard file."""
    teacher_precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: the teacher runs under autocast while its distributions over the classes are stored,
    if that and the rounding together cost no tap more than `max_error` on sampled views; else it
    runs in fp32, which is said. Stores of features are always of fp32."""

    def identity(self) -> dict[str, Any]:
        """Return what the content of a store depends on, as it was before newer fields."""
        content = self.model_dump(mode="json")
        if content["teacher_precision"] == "fp32":
            del content["teacher_precision"]
        return content


class LadderStudent(ModelConfig):
    """One student of a ladder of one's own: a table `[[ladder.students]]`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9._-]*$", max_length=60)]
    """What tables, figures and folders call it; it begins with a letter."""
    width: Width = 1
    """The capacity dial, for networks that have one."""
    weights: PathText = ""
    """A state dict that it starts from (as `teacher.weights`); empty, or `own`, starts from what it
    is built with."""
    weights_key: str = ""
    """Which weights of the file, where there are several (as `teacher.weights_key`)."""


class LadderConfig(Section):
    """The ladder of student capacities."""

    capacities: SomeNames = ("1/256", "1/64", "1/16", "1/4")
    """Student sizes as shares of the teacher's parameters, e.g. `"1/16"` or `"0.05"`."""
    students: tuple[LadderStudent, ...] = ()
    """Students of one's own, one table each with `name`, `model`, `options`, `weights`, ...; they
    stand in place of `capacities` and `[student]`."""

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
