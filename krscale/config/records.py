"""Reading files that krscale wrote as what they were: a dataclass, a model, a mapping."""

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
"""A share as a record has it, in 0..1; of the samples that are right, or of information."""
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=0)]
"""How many, in a record."""


def read_record(path: Path, kind: type[T], rebuild: str = "") -> T:
    """Read a JSON file as a value of a type, every field checked.

    Args:
        path: The file.
        kind: A dataclass, a pydantic model, or e.g. `dict[str, float]`.
        rebuild: A sentence for the error: what can still be used, and what makes the file again.

    Raises:
        DamagedFileError: If it is missing, not JSON, or of another content; names file and key.
    """
    return as_record(path, read_json(path, rebuild), kind, rebuild)


def as_record(path: Path, content: Any, kind: type[T], rebuild: str = "") -> T:
    """Return the content of a file as a value of a type; arguments as of `read_record`.

    Raises:
        DamagedFileError: Naming the first field that is missing or of another type.
    """
    # JSON knows no tuples: in strict mode only pydantic's JSON reader takes a list for one. Models
    # say themselves how strict they are.
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
