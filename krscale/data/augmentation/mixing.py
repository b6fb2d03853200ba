"""Mixup and CutMix: views made of two images, with labels made of the two labels.

The partner of a sample is drawn from the whole training split by its number, so that it depends on
(seed, sample, view), as the pixels do, and not on the other samples of the batch. The teacher that
fills the store therefore gets the same mixed images as the student (Beyer et al., Knowledge
distillation: A good teacher is patient and consistent, CVPR 2022, arXiv 2106.05237).

Sources: Zhang, Cisse, Dauphin, Lopez-Paz, mixup: Beyond Empirical Risk Minimization, ICLR 2018,
arXiv 1710.09412. Yun, Han, Oh, Chun, Choe, Yoo, CutMix, ICCV 2019, arXiv 1905.04899.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import lru_cache
from math import isqrt

import torch
from torch import Tensor

from krscale.config import ViewsConfig
from krscale.data.augmentation.draws import draw_integers
from krscale.data.augmentation.rectangles import PLACES, covered

_ONE = 256  # weights of mixup are multiples of 1 / _ONE
_OUTCOMES = 1 << 30
_TERMS = 120  # terms of a power series, each about half of the one before


def partners(samples: Tensor, view: int, policy: ViewsConfig, num_samples: int) -> Tensor:
    """Return the other sample of each mixed view, `[B]` int64, uniform over all but the sample.

    Args:
        samples: `[B]` int64, index of each image within its split.
        view: Number of the view.
        policy: The `views` section.
        num_samples: Number of samples of the split.

    Example:
        >>> samples = torch.arange(1000)
        >>> bool((partners(samples, 0, ViewsConfig(), 1000) == samples).any())  # never itself
        False
    """
    others = max(num_samples - 1, 1)  # a single sample is its own partner
    offset = draw_integers(samples, policy.seed, view, {"partner": others})["partner"] + 1
    return (samples + offset) % num_samples


def mix(
    images: Tensor, others: Tensor, samples: Tensor, view: int, policy: ViewsConfig
) -> tuple[Tensor, Tensor]:
    """Mix the views of samples with those of their partners.

    If both kinds are enabled, each is used for half of the views.

    Args:
        images: `[B, C, H, W]` uint8, views of the samples.
        others: `[B, C, H, W]` uint8, the same view of their partners.
        samples: `[B]` int64: the key of the random draws.
        view: Number of the view.
        policy: The `views` section, with `policy.mixes` true.

    Returns:
        The mixed images `[B, C, H, W]` uint8, and the weight of each sample's own label, `[B]` fp32
        in (0, 1); its partner's label has the remaining weight.

    Example:
        >>> black, white = (torch.full((64, 3, 8, 8), grey, dtype=torch.uint8) for grey in (0, 255))
        >>> mixed, weights = mix(black, white, torch.arange(64), 0, ViewsConfig(cutmix=1.0))
        >>> seen = (mixed == 0).float().mean(dim=(1, 2, 3))  # of each sample's own image
        >>> torch.allclose(weights, seen)
        True
    """
    height, width = images.shape[-2:]
    bounds = {"mix_kind": 2, "mixup": _OUTCOMES, "cutmix": _OUTCOMES}
    bounds |= {"paste_row": PLACES, "paste_column": PLACES}
    draws = draw_integers(samples, policy.seed, view, bounds)
    if policy.cutmix == 0.0:
        return _mixup(images, others, draws["mixup"], policy.mixup)
    shares = _shares(draws["cutmix"], policy.cutmix)
    heights, widths = _pasted(height, width, images.device).index_select(0, shares).unbind(1)
    by_row = covered(height, heights, draws["paste_row"])[:, None, :, None]
    by_column = covered(width, widths, draws["paste_column"])[:, None, None, :]
    pasted = torch.where(by_row & by_column, others, images)
    weights = (height * width - heights * widths).float() / (height * width)
    if policy.mixup == 0.0:
        return pasted, weights
    blended, of_blended = _mixup(images, others, draws["mixup"], policy.mixup)
    is_pasted = draws["mix_kind"] == 1
    mixed = torch.where(is_pasted[:, None, None, None], pasted, blended)
    return mixed, torch.where(is_pasted, weights, of_blended)


def _mixup(images: Tensor, others: Tensor, draw: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    shares = _shares(draw, alpha)
    own = shares.to(torch.int32).view(-1, 1, 1, 1)
    mixed = (images * own + others * (_ONE - own) + _ONE // 2) // _ONE
    return mixed.to(torch.uint8), shares.float() / _ONE


def _shares(draw: Tensor, alpha: float) -> Tensor:
    """Turn uniform draws into weights of Beta(alpha, alpha), `[B]` int64: 1 to 255 of 256."""
    return torch.searchsorted(_thresholds(alpha, draw.device), draw, right=True) + 1


@lru_cache(maxsize=32)
def _thresholds(alpha: float, device: torch.device) -> Tensor:
    """Return `[254]`, the number of draws below each boundary between weights, at 1.5 to 254.5.

    This uses decimal arithmetic, which rounds identically on every machine. The density is
    integrated from 0 to x <= 1/2 by the power series of `(1 - x) ** (alpha - 1)`; the other half is
    its mirror image.
    """
    with localcontext(prec=50):
        a = Decimal(str(alpha))
        coefficients = [Decimal(1)]
        for n in range(1, _TERMS):
            coefficients.append(coefficients[-1] * (n - a) / n)
        terms = [c / (a + n) for n, c in enumerate(coefficients)]
        half = _integral(Decimal("0.5"), a, terms)
        places = [(Decimal(2 * k + 1) / (2 * _ONE)) for k in range(1, _ONE // 2)]
        below = [round(_OUTCOMES * _integral(x, a, terms) / (2 * half)) for x in places]
    return torch.tensor(below + [_OUTCOMES - count for count in reversed(below)], device=device)


def _integral(x: Decimal, alpha: Decimal, terms: list[Decimal]) -> Decimal:
    total = Decimal(0)
    for term in reversed(terms):
        total = total * x + term
    return total * x**alpha


@lru_cache(maxsize=32)
def _pasted(height: int, width: int, device: torch.device) -> Tensor:
    """Return height and width `[256, 2]` of the pasted part, by the share kept, in units of 1/256.

    The part has the image's aspect ratio and is always smaller than the image, so that both images
    stay visible.
    """
    sides = [
        [
            min(max((isqrt(4 * side * side * (_ONE - kept)) + 16) // 32, 1), side - 1)
            for kept in range(_ONE)
        ]
        for side in (height, width)
    ]
    return torch.tensor(sides, device=device).T.contiguous()
