"""What a student learns from: the method, its weights, and its own settings."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from krscale.config.fields import Count, Positive, Section, Share, StrictInt, Weight, parse_capacity


class PosteriorConfig(Section):
    """Weights of the methods on the logits when KR is combined with them, as in `kr+dkd`."""

    kd: Weight = 1.0
    """Weight of the KD term in `kr+kd`."""
    dkd: Weight = 1.0
    """Weight of the DKD term in `kr+dkd`."""
    dist: Weight = 1.0
    """Weight of the DIST term in `kr+dist`."""
    logit_standardisation: Weight = 1.0
    """Weight of the KD term on standardised logits in `kr+logit_standardisation`."""


class DistillConfig(Section):
    """What the student learns from: the method, its weights, and KR's own settings."""

    method: str = "kr"
    """A registered method, or KR with methods on the logits: `kr+dkd`, `kr+dist+kd`."""
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
    sparsity: Share = 0.3
    """Share of each sign's gap that the recoding penalty drops; 0 is ordinary distillation."""
    sparsity_schedule: Literal["constant", "rising", "falling"] = "constant"
    """Sparsity over the training: the same, from 0 up to `sparsity`, or from it down to 0."""
    auxiliary_weight: Weight = 1.0
    """Factor of every group but the deepest."""
    head_grid: Count = 4
    """Auxiliary heads read a tap's means over so many times so many cells, not over all of it."""
    mixing: Literal["arithmetic", "geometric"] = "arithmetic"
    """How the taps of a group are averaged: probabilities, or log-probabilities."""
    parameter_weight: Weight = 0.0
    """Weight of the data-free source: the distribution of the weights themselves."""
    posterior: PosteriorConfig = PosteriorConfig()
    """What a combined method such as `kr+dkd` weighs its terms with."""
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
    fitnet_weight: Weight = 10.0
    """Weight of the FitNet term: the middle stage's feature map."""
    at_weight: Weight = 10.0
    """Weight of the attention transfer term: where every stage is active."""
    pkt_weight: Weight = 100.0
    """Weight of the PKT term: which samples are alike to the classifier."""
    crd_weight: Weight = 0.8
    """Weight of the CRD term: the contrast with samples of other classes."""
    crd_temperature: Positive = 0.07
    """Temperature of the similarities of CRD."""
    crd_embedding_size: Count = 128
    """Size of the embeddings in which CRD compares student and teacher."""

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
