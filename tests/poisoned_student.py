"""A student whose logits are NaN while it trains, from its first step."""

from smooth_student import Smooth
from torch import Tensor


class Poisoned(Smooth):
    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits * float("nan") if self.training else logits
