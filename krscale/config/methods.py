"""The settings of every method: type, allowed values, default, meaning and search range.

There is one frozen class for each method. A method's constructor takes an instance of its class,
and the `[distill]` section of an experiment combines all of them (`DistillConfig`), so this is the
only place where a setting is defined. A setting that methods share is a field of one class, from
which their classes inherit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

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
        """Refuse a setting that is given but not used because of the default of another one."""
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
            settings: Settings that this method does not have are ignored; settings that are missing
                keep their defaults.
            **changes: Values that replace those of `settings`.

        Raises:
            ValueError: If a value is not allowed.
        """
        values = dict(settings)
        own = {name: values[name] for name in cls.model_fields if name in values}
        return cls.model_validate(own | changes)


class PlainSettings(MethodSettings):
    """Plain training has no settings."""


class LabelSmoothingSettings(MethodSettings):
    """Settings of label smoothing."""

    label_smoothing: Annotated[Share, SearchRange(0.02, 0.4, log=True)] = 0.1
    """Share of every label that label smoothing spreads over all classes."""


class DistillationSettings(MethodSettings):
    """Settings that all methods with a teacher share."""

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
    """Weight within DKD of the divergence between the labelled class and all others together."""
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
    """Reduction over a stage's positions: the mean, as in the authors' code, or half the sum, as in
    their equation, which gives stages with many positions more weight."""
    at_mean_weight: Annotated[
        Weight, SearchRange(3.0, 3000.0, log=True), UsedWith("at_reduction", ("mean",))
    ] = 100.0
    """Weight of the attention transfer term with the mean. The authors use 1000, on maps of at most
    32x32 positions; small images need less."""
    at_weight: Annotated[
        Weight, SearchRange(0.3, 300.0, log=True), UsedWith("at_reduction", ("sum",))
    ] = 10.0
    """Weight of the attention transfer term with the sum."""


class PKTSettings(KDSettings):
    """Settings of PKT."""

    pkt_weight: Annotated[Weight, SearchRange(3.0, 3000.0, log=True)] = 100.0
    """Weight of the PKT term: which samples are similar in the classifier's input."""


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
    """Weight of the ReviewKD term: the maps of all stages. The authors use 0.6 to 8, depending on
    the pair of networks, most often 5."""
    reviewkd_warmup: Share = 0.08
    """Share of the training over which this weight rises linearly, from 0 in the first epoch. The
    authors use 20 of 240 epochs."""


class RKDSettings(KDSettings):
    """Settings of RKD."""

    rkd_weight: Annotated[Weight, SearchRange(0.03, 3.0, log=True)] = 1.0
    """Weight of the RKD term as a whole: relations between the images of a batch."""
    rkd_distance_weight: Weight = 25.0
    """Weight within RKD of the distances of pairs; the default is the authors' for
    classification."""
    rkd_angle_weight: Weight = 50.0
    """Weight within RKD of the angles of triples; the default is the authors' for
    classification."""


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
    """Settings of Knowledge Representing (KR), and of its combinations with other methods."""

    kr_weight: Annotated[Weight, SearchRange(0.3, 10.0, log=True)] = 1.0
    """Weight of the KR term."""
    granularity: Annotated[StrictInt | Level, SearchRange(1, "num_taps", type="int")] = "stage"
    """Number of groups of taps, from 1 (the whole network) to the number of taps; or a level."""
    sparsity: Annotated[Share, SearchRange(0.0, 0.9)] = 0.3
    """Share of each sign's gap that the recoding penalty drops; 0 is ordinary distillation."""
    sparsity_schedule: Annotated[Schedule, SearchChoices(SCHEDULES)] = "constant"
    """Sparsity over the training: constant, rising from 0 to `sparsity`, or falling from it to
    0."""
    auxiliary_weight: Annotated[Weight, SearchRange(0.1, 2.0, log=True)] = 1.0
    """Factor of every group except the deepest."""
    auxiliary_schedule: Annotated[AuxiliarySchedule, SearchChoices(get_args(AuxiliarySchedule))] = (
        "falling"
    )
    """What happens to these groups: they stay, their factor falls linearly to 0, or groups are
    merged until one is left. From `auxiliary_until` on, only the classifier is taught."""
    auxiliary_until: Annotated[
        PositiveShare,
        SearchRange(0.4, 1.0),
        UsedWith("auxiliary_schedule", ("falling", "coarsening")),
        UsedWith("where_schedule", ("falling",)),
    ] = 0.7
    """Share of the training after which only the classifier is taught, if a schedule is `falling`
    or `coarsening`."""
    auxiliary_interval: Annotated[Count, Field(le=10)] = 1
    """Teach these groups, and where stages are active, in every n-th step only, with n times their
    weight; the steps between cost what they cost without them. In a loop of your own
    (`krscale.KRLoss`) it must be 1."""
    head_grid: Count = 4
    """Auxiliary heads read a tap's means over the cells of a grid with this many rows and columns,
    not over the whole map."""
    probe_grid: Count = 4
    """The same for the teacher's probes and taps; 1 reads means over all positions. Taps with many
    channels are read on a coarser grid: a probe reads at most 1024 numbers, or one mean of each
    channel."""
    where_weight: Annotated[Weight, SearchChoices((0.0, 0.5, 1.0, 2.0, 4.0))] = 0.0
    """Weight of a second distribution: where in the image a stage is active. With 0 it is not
    stored, and no trial of a search can use it: set it above 0 to search it."""
    where_schedule: Annotated[WhereSchedule, SearchChoices(get_args(WhereSchedule))] = "constant"
    """This weight over the training: the same, or falling linearly to 0 at `auxiliary_until`."""
    alignment: Annotated[Alignment, SearchChoices(ALIGNMENTS)] = "stage"
    """Where in the student a group of the teacher's taps is matched: at the end of the same stage,
    for networks with the same number of stages, or at the same relative depth."""
    mixing: Annotated[Mixing, SearchChoices(MIXINGS)] = "arithmetic"
    """How the taps of a group are averaged: as probabilities, or as log-probabilities."""
    parameter_weight: Weight = 0.0
    """Weight of the data-free source: the distribution of the weights themselves."""
    posterior: PosteriorConfig = PosteriorConfig()
    """Weights of the terms of a combined method such as `kr+dkd`."""

    @field_validator("granularity")
    @classmethod
    def _positive(cls, granularity: int | str) -> int | str:
        if isinstance(granularity, int) and granularity < 1:
            raise ValueError("a granularity is at least 1, or one of network, stage, layer")
        return granularity
