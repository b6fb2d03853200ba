"""Recording runs in MLflow without ever making training wait, lose or double one."""

from krscale.tracking.address import redact
from krscale.tracking.tracker import Tracker, sync

__all__ = ["Tracker", "redact", "sync"]
