"""The settings of every method: type, allowed values, default, meaning, and where each is searched.

One frozen class for each method. A method's constructor takes an instance of its class, and the
`[distill]` section of an experiment is all of them together (`DistillConfig`), so this is the only
place where a setting is written down. A setting that methods share is a field of one class, from
which theirs inherit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import field_validator, model_validator

from krscale.choices import (
    ALIGNMENTS,
    MIXINGS,
    SCHEDULES,
    Alignment,
    Level,
    Mixing,
    Schedule,
)
from krscale.config.fields import (
    Count,
    PositiveShare,
    Section,
    Share,
    StrictInt,
    Temperature,
    Weight,
)
from krscale.config.ranges import SearchChoices, SearchRange, UsedWith

AuxiliarySchedule = Literal["constant", "falling", "coarsening"]
WhereSchedule = Literal["constant", "falling"]
ATReduction = Literal["mean", "sum"]
SettingsTable = Section | Mapping[str, Any]
"""Settings of several methods: a `DistillConfig`, or a plain table."""


class MethodSettings(Section):
    """Base of the settings of a method."""

    @model_validator(mode="before")
    @classmethod
    def _used(cls, given: Any) -> Any:
        """Refuse a setting that is set, but not used, because of another one's default."""
        for name in given if isinstance(given, dict) else ():
            field = cls.model_fields.get(name)
            needed = [m for m in field.metadata if isinstance(m, UsedWith)] if field else []
            defaults = [cls.model_fields[other.field].default for other in needed]
            if not needed or any(other.field in given for other in needed):
                continue
            if not any(d in other.values for d, other in zip(defaults, needed, strict=True)):
                raise ValueError(
                    f"{name} is used with {' or '.join(map(str, needed))} alone, and "
                    f"{needed[0].field} is {defaults[0]!r} unless it is set: set it, too"
                )
        return given

    @classmethod
    def of(cls, settings: SettingsTable, **changes: Any) -> Self:
        """Return this method's part of the settings of all methods.

        Args:
            settings: What this method does not have is passed over, what they do not have keeps
                its default.
            **changes: Values that replace those of `settings`.

        Raises:
            ValueError: If a value is not allowed.
        """
        values = dict(settings)
        own = {name: values[name] for name in cls.model_fields if name in values}
        return cls.model_validate(own | changes)


class PlainSettings(MethodSettings):
    """Plain training has none."""


class LabelSmoothingSettings(MethodSettings):
    """Settings of label smoothing."""

    label_smoothing: Annotated[Share, SearchRange(0.02, 0.4, log=True)] = 0.1
    """Share of every label that label smoothing spreads over all classes."""


class DistillationSettings(MethodSettings):
    """What all methods with a teacher share."""

    ce_weight: Annotated[Weight, SearchRange(0.0, 1.0)] = 0.5
    """Weight of the cross-entropy with the labels."""
    temperature: Annotated[Temperature, SearchRange(1.0, 8.0, log=True)] = 4.0
    """Temperature of teacher and student distributions."""


class KDSettings(DistillationSettings):
    """Settings of KD; the methods on features, which are used with KD, have them too."""

    kd_weight: Annotated[Weight, SearchRange(0.3, 10.0, log=True)] = 0.9
    """Weight of the KD term."""


class DKDSettings(DistillationSettings):
    """Settings of DKD."""

    dkd_weight: Annotated[Weight, SearchRange(0.1, 3.0, log=True)] = 1.0
    """Weight of the DKD term as a whole."""
    dkd_target_weight: Weight = 1.0
    """Weight within DKD of the divergence between label and not label."""
    dkd_nontarget_weight: Annotated[Weight, SearchRange(1.0, 16.0, log=True)] = 8.0
    """Weight within DKD of the divergence among the other classes."""


class DISTSettings(DistillationSettings):
    """Settings of DIST."""

    dist_weight: Annotated[Weight, SearchRange(0.3, 10.0, log=True)] = 1.0
    """Weight of the DIST term as a whole."""
    dist_inter_weight: Weight = 1.0
    """Weight within DIST of the correlation over the classes of a sample."""
    dist_intra_weight: Weight = 1.0
    """Weight within DIST of the correlation over the samples for a class."""


class LogitStandardisationSettings(DistillationSettings):
    """Settings of logit standardisation."""

    logit_standardisation_weight: Annotated[Weight, SearchRange(0.3, 20.0, log=True)] = 9.0
    """Weight of the KD term on standardised logits."""


class FitNetSettings(KDSettings):
    """Settings of FitNet."""

    fitnet_weight: Annotated[Weight, SearchRange(0.3, 300.0, log=True)] = 10.0
    """Weight of the FitNet term: the middle stage's feature map."""


class ATSettings(KDSettings):
    """Settings of attention transfer."""

    at_reduction: Annotated[ATReduction, SearchChoices(get_args(ATReduction))] = "mean"
    """Over a stage's positions: their mean, as in the authors' code, or half their sum, as in their
    equation, by which stages of many positions weigh more."""
    at_mean_weight: Annotated[
        Weight, SearchRange(3.0, 3000.0, log=True), UsedWith("at_reduction", ("mean",))
    ] = 100.0
    """Weight of the attention transfer term with the mean. The authors' is 1000, on maps of 32x32
    positions and fewer; small images want less."""
    at_weight: Annotated[
        Weight, SearchRange(0.3, 300.0, log=True), UsedWith("at_reduction", ("sum",))
    ] = 10.0
    """Weight of the attention transfer term with the sum."""


class PKTSettings(KDSettings):
    """Settings of PKT."""

    pkt_weight: Annotated[Weight, SearchRange(3.0, 3000.0, log=True)] = 100.0
    """Weight of the PKT term: which samples are alike to the classifier."""


class CRDSettings(KDSettings):
    """Settings of CRD."""

    crd_weight: Annotated[Weight, SearchRange(0.03, 3.0, log=True)] = 0.8
    """Weight of the CRD term: the contrast with samples of other classes."""
    crd_temperature: Temperature = 0.07
    """Temperature of the similarities of CRD."""
    crd_embedding_size: Count = 128
    """Size of the embeddings in which CRD compares student and teacher."""


class ReviewKDSettings(KDSettings):
    """Settings of ReviewKD."""

    reviewkd_weight: Annotated[Weight, SearchRange(0.3, 30.0, log=True)] = 5.0
    """Weight of the ReviewKD term: the maps of all stages. The authors' is 0.6 to 8, by the pair of
    networks, most often 5."""
    reviewkd_warmup: Share = 0.08
    """Share of the training over which this weight rises linearly, from 0 in the first epoch. The
    authors' is 20 of 240 epochs."""


class RKDSettings(KDSettings):
    """Settings of RKD."""

    rkd_weight: Annotated[Weight, SearchRange(0.03, 3.0, log=True)] = 1.0
    """Weight of the RKD term as a whole: relations between the images of a batch."""
    rkd_distance_weight: Weight = 25.0
    """Weight within RKD of the distances of pairs; the authors' for classification."""
    rkd_angle_weight: Weight = 50.0
    """Weight within RKD of the angles of triples; the authors' for classification."""


class PosteriorConfig(Section):
    """Weights of the methods on the logits when KR is combined with them, as in `kr+dkd`."""

    kd: Annotated[Weight, SearchRange(0.1, 3.0, log=True)] = 1.0
    """Weight of the KD term in `kr+kd`."""
    dkd: Annotated[Weight, SearchRange(0.1, 3.0, log=True)] = 1.0
    """Weight of the DKD term in `kr+dkd`."""
    dist: Annotated[Weight, SearchRange(0.1, 3.0, log=True)] = 1.0
    """Weight of the DIST term in `kr+dist`."""
    logit_standardisation: Annotated[Weight, SearchRange(0.1, 10.0, log=True)] = 1.0
    """Weight of the KD term on standardised logits in `kr+logit_standardisation`."""


class KRSettings(DistillationSettings):
    """Settings of Knowledge Representing, and of what it is combined with."""

    kr_weight: Annotated[Weight, SearchRange(0.3, 10.0, log=True)] = 1.0
    """Weight of the KR term."""
    granularity: Annotated[StrictInt | Level, SearchRange(1, "num_taps", type="int")] = "stage"
    """Groups of taps: a number from 1 (the whole network) to the number of taps, or a level."""
    sparsity: Annotated[Share, SearchRange(0.0, 0.9)] = 0.3
    """Share of each sign's gap that the recoding penalty drops; 0 is ordinary distillation."""
    sparsity_schedule: Annotated[Schedule, SearchChoices(SCHEDULES)] = "constant"
    """Sparsity over the training: the same, from 0 up to `sparsity`, or from it down to 0."""
    auxiliary_weight: Annotated[Weight, SearchRange(0.1, 2.0, log=True)] = 1.0
    """Factor of every group but the deepest."""
    auxiliary_schedule: Annotated[AuxiliarySchedule, SearchChoices(get_args(AuxiliarySchedule))] = (
        "falling"
    )
    """What becomes of these groups: they stay, their factor falls linearly to 0, or groups are
    joined until a single one is left. From `auxiliary_until` on the classifier is taught alone."""
    auxiliary_until: Annotated[
        PositiveShare,
        SearchRange(0.4, 1.0),
        UsedWith("auxiliary_schedule", ("falling", "coarsening")),
        UsedWith("where_schedule", ("falling",)),
    ] = 0.7
    """Share of the training after which nothing but the classifier is taught, where that falls or
    coarsens."""
    head_grid: Count = 4
    """Auxiliary heads read a tap's means over so many times so many cells, not over all of it."""
    probe_grid: Count = 4
    """The teacher's probes read its taps on such a grid, too; 1 reads means over all positions.
    Taps of many channels are read on a coarser grid: a probe reads 1024 numbers at most, or one
    mean of each channel."""
    where_weight: Annotated[Weight, SearchChoices((0.0, 0.5, 1.0, 2.0, 4.0))] = 0.0
    """Weight of a second distribution: where in the image a stage is active. With 0 nothing of it
    is stored, and no trial of a search can have it: set it above 0 to search it."""
    where_schedule: Annotated[WhereSchedule, SearchChoices(get_args(WhereSchedule))] = "constant"
    """This weight over the training: the same, or falling linearly to 0 at `auxiliary_until`."""
    alignment: Annotated[Alignment, SearchChoices(ALIGNMENTS)] = "stage"
    """Where a group of the teacher's taps meets the student: at the end of the same stage, for
    networks of as many stages, or at the same relative depth."""
    mixing: Annotated[Mixing, SearchChoices(MIXINGS)] = "arithmetic"
    """How the taps of a group are averaged: probabilities, or log-probabilities."""
    parameter_weight: Weight = 0.0
    """Weight of the data-free source: the distribution of the weights themselves."""
    posterior: PosteriorConfig = PosteriorConfig()
    """What a combined method such as `kr+dkd` weighs its terms with."""

    @field_validator("granularity")
    @classmethod
    def _positive(cls, granularity: int | str) -> int | str:
        if isinstance(granularity, int) and granularity < 1:
            raise ValueError("a granularity is at least 1, or one of network, stage, layer")
        return granularity
