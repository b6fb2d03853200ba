"""Record runs in MLflow: training never waits, and no run is lost or recorded twice."""

from krscale.redaction import redact
from krscale.tracking.datasets import DatasetUsed, datasets_used
from krscale.tracking.models import HASH_TAG, Registration, save_onnx_model
from krscale.tracking.recorded import successor
from krscale.tracking.replay import Begun, has_record, num_refused, reopen, sync
from krscale.tracking.tracker import Tracker, print_warning, recording_seconds

__all__ = [
    "HASH_TAG",
    "Begun",
    "DatasetUsed",
    "Registration",
    "Tracker",
    "datasets_used",
    "has_record",
    "num_refused",
    "print_warning",
    "recording_seconds",
    "redact",
    "reopen",
    "save_onnx_model",
    "successor",
    "sync",
]
