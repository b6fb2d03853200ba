"""Keeping credentials out of whatever is stored or shown."""

from __future__ import annotations

import os
import re

_USERINFO = re.compile(r"(?<=://)[^/\s'\"]*@")
_SECRET_FIELD = re.compile(
    r"(?i)([?&;][^=&;\s]*(?:token|passw|pwd|secret|key|sig|credential|auth)[^=&;\s]*=)[^&;\s'\"]+"
)
_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_SHORTEST_SECRET = 4
"""Shorter ones would blank out ordinary letters of every text."""


def redact(text: str) -> str:
    """Return the text without credentials: of URIs, and of MLflow's environment variables."""
    for name in _SECRET_VARIABLES:
        secret = os.environ.get(name, "")
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return _SECRET_FIELD.sub(r"\1***", _USERINFO.sub("***@", text))
