"""torchvision, timm and transformers for tests: imported, or the test is skipped saying why.

torchvision's compiled operators are built for one build of torch. With another build, such as a
package index's CPU build, it fails to import, because the schemas of two operators are missing. No
classifier uses them, so on exactly that error they are registered without an implementation.
"""

from __future__ import annotations

import importlib
import sys
from functools import lru_cache
from types import ModuleType

import pytest
import torch

_MISSING = "operator torchvision::nms does not exist"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def library(name: str) -> ModuleType:
    """Return a library, or skip the test where it is not installed."""
    found = _import(name)
    if isinstance(found, str):
        pytest.skip(found)
    return found


@lru_cache
def _import(name: str) -> ModuleType | str:
    if name != "torchvision":
        needed = _import("torchvision") if name == "timm" else None
        if isinstance(needed, str):
            return needed
    try:
        return importlib.import_module(name)
    except ImportError as error:
        return f"{name} is not installed here ({error}): pip install 'krscale[vision,hf]'"
    except RuntimeError as error:
        if name != "torchvision" or _MISSING not in str(error):
            raise
    _register()
    for module in [found for found in sys.modules if found.partition(".")[0] == "torchvision"]:
        del sys.modules[module]
    return importlib.import_module(name)


@lru_cache
def _register() -> torch.library.Library:
    fragment = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        fragment.define(schema)
    return fragment  # deleting it would remove its operators
