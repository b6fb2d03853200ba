"""Knowledge Representing in a training loop of one's own: `KRLoss`, and the parts of it."""

from krscale.kr.context import Tap
from krscale.kr.kr_loss import KRLoss

__all__ = ["KRLoss", "Tap"]
