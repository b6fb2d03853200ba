"""Knowledge Representing for your own training loop: `KRLoss` and its parts."""

from krscale.kr.context import Tap
from krscale.kr.kr_loss import KRLoss

__all__ = ["KRLoss", "Tap"]
