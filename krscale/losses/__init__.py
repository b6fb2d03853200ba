"""The losses as pure functions, for your own training loop.

All losses have the same signature, `loss(student, teacher, labels, *, settings)`, so that they are
interchangeable. Each returns one number per sample, `[B]` fp32, before any weight and without the
labels' cross-entropy; add `loss(...).mean()` to it. The teacher gets no gradient. The defaults are
those of the corresponding settings of an experiment (`krscale.config.methods`); the mathematics is
that of `krscale.methods`, which trials use.

`krscale.KRLoss` does the rest of Knowledge Representing: taps, probes, groups, auxiliary heads.
"""

from krscale.losses.features import attention_transfer, crd, fitnet, pkt, reviewkd, rkd
from krscale.losses.logits import dist, dkd, kd, kr, label_smoothing, logit_standardisation

__all__ = [
    "attention_transfer",
    "crd",
    "dist",
    "dkd",
    "fitnet",
    "kd",
    "kr",
    "label_smoothing",
    "logit_standardisation",
    "pkt",
    "reviewkd",
    "rkd",
]
