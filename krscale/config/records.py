"""Reading JSON files that krscale wrote back into a dataclass, a pydantic model or a mapping."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from krscale.config.fields import plain_message
from krscale.files import damaged, read_json

T = TypeVar("T")

Accuracy = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
"""A share in a record, in 0..1: of samples that are classified correctly, or of information."""
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=0)]
"""A number of things in a record."""


def read_record(path: Path, kind: type[T], rebuild: str = "") -> T:
    """Read a JSON file as a value of a type, and check every field.

    Args:
        path: The file.
        kind: A dataclass, a pydantic model, or e.g. `dict[str, float]`.
        rebuild: A sentence for the error: what can still be used, and how to recreate the file.

    Raises:
        DamagedFileError: If it is missing, not JSON, or does not have the type; names file and key.
    """
    return as_record(path, read_json(path, rebuild), kind, rebuild)


def as_record(path: Path, content: Any, kind: type[T], rebuild: str = "") -> T:
    """Return the content of a file as a value of a type; arguments as for `read_record`.

    Raises:
        DamagedFileError: Naming the first field that is missing or has the wrong type.
    """
    # JSON has no tuples: in strict mode only pydantic's JSON reader accepts a list for one. Models
    # define their own strictness.
    strict = None if isinstance(kind, type) and issubclass(kind, BaseModel) else True
    try:
        found: T = TypeAdapter(kind).validate_json(json.dumps(content), strict=strict)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise damaged(path, _explain(first), rebuild) from None
    return found


def _explain(found: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in found["loc"])
    if found["type"] == "missing":
        return f"the field {place!r} is missing"
    message = plain_message(str(found["msg"]))
    shown = repr(found["input"])
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return f"{place}: {message} (got {shown})" if place else f"{message} (got {shown})"
