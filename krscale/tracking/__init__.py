"""Recording runs in MLflow without ever making training wait, lose or double one."""

from krscale.tracking.address import redact
from krscale.tracking.datasets import DatasetUsed, datasets_used
from krscale.tracking.tracker import Tracker, sync

__all__ = ["DatasetUsed", "Tracker", "datasets_used", "redact", "sync"]
