"""The losses as pure functions, for a training loop of one's own.

All are called alike, `loss(student, teacher, labels, *, settings)`, so that one can take another's
place, and all return one number for each sample, `[B]` fp32, before any weight and without the
labels' cross-entropy: `loss(...).mean()` is what is added to it. The teacher gets no gradient. A
default is that of the experiment's setting of the same meaning (`krscale.config.methods`); the
mathematics is that of `krscale.methods`, which trials use.

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
