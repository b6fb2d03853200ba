"""What a network says of its own preprocessing: the metadata of timm, torchvision, Hugging Face.

Only attributes and files are read, so that none of these libraries is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from krscale.errors import UserError
from krscale.models.preprocessing import Numbers, Preprocessing
from krscale.models.resizing import INTERPOLATIONS, Size

HF_FILE = "preprocessor_config.json"
_ATTRIBUTES = ("preprocessing", "pretrained_cfg", "default_cfg", "transforms")
"""Where networks keep it: one's own, timm's two names, and torchvision's presets of weights."""
_PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Numbers of Pillow's filters, which Hugging Face writes down."""


def preprocessing_of(
    network: nn.Module | None, folder: Path | None = None, interpolation: str = ""
) -> Preprocessing | None:
    """Return what a network, or the folder it came from, says of its preprocessing.

    Args:
        network: May have an attribute `pretrained_cfg` or `default_cfg` (timm's: `mean`, `std`,
            `input_size`, `interpolation`), `transforms` (torchvision's: `mean`, `std`,
            `crop_size`, `interpolation`), or `preprocessing`, with any of these names; a mapping or
            an object.
        folder: May hold the `preprocessor_config.json` of Hugging Face.
        interpolation: Taken in place of the network's own, which then is not read.

    Returns:
        None where neither says anything.

    Raises:
        UserError: If what is said cannot be followed.
    """
    if folder is not None and (folder / HF_FILE).is_file():
        return _of_hugging_face(folder / HF_FILE, interpolation)
    for name in _ATTRIBUTES:
        said = getattr(network, name, None)
        if isinstance(said, Preprocessing):
            return said
        # A module is a part of the network, which does by itself what it says.
        if said is not None and not isinstance(said, nn.Module):
            where = f"{type(network).__name__}.{name}"
            found = _of_fields(said, where, interpolation)
            if found is not None:
                return found
    return None


def _of_fields(said: Any, where: str, interpolation: str) -> Preprocessing | None:
    mean, std = _numbers(_field(said, "mean")), _numbers(_field(said, "std"))
    size = _size(_field(said, "input_size") or _field(said, "crop_size"))
    if mean is None and std is None and size is None:
        return None
    if (mean is None) != (std is None):
        raise UserError(f"{where}: has one of mean and std; both are needed, or neither.")
    return Preprocessing(
        mean,
        std,
        str(_field(said, "pixel_range") or "0..1"),
        str(_field(said, "channel_order") or "rgb").lower(),
        size,
        interpolation or _interpolation(_field(said, "interpolation"), where),
    )


def _of_hugging_face(path: Path, interpolation: str) -> Preprocessing:
    """Read the configuration of a Hugging Face image processor.

    Raises:
        UserError: If it is not JSON, or scales pixels in a way that is not known here.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}).") from None
    factor, scales = said.get("rescale_factor", 1 / 255), bool(said.get("do_rescale", True))
    if scales and (abs(factor * 255 - 1) > 1e-3 or said.get("rescale_offset")):
        raise UserError(
            f"{path}: pixels are multiplied by {factor:g} where 1/255 is known, or moved; set "
            "mean, std and pixel_range yourself ([teacher.preprocessing])."
        )
    mean, std = _numbers(said.get("image_mean")), _numbers(said.get("image_std"))
    if not said.get("do_normalize", True) or mean is None or std is None:
        mean, std = (0.0,), (1.0,)
    size = said.get("crop_size") if said.get("do_center_crop") else said.get("size")
    return Preprocessing(
        mean,
        std,
        "0..1" if scales else "0..255",
        "rgb",
        _size(size) if said.get("do_resize", True) else None,
        interpolation
        or _interpolation(_PILLOW.get(said.get("resample", 2), said.get("resample")), str(path)),
    )


def _field(said: Any, name: str) -> Any:
    return said.get(name) if isinstance(said, Mapping) else getattr(said, name, None)


def _numbers(value: Any) -> Numbers | None:
    if value is None:
        return None
    if isinstance(value, int | float):
        return (float(value),)
    return tuple(float(number) for number in value)


def _size(value: Any) -> Size | None:
    """Read `224`, `[224]`, `(3, 224, 224)`, `{"height": 224, "width": 224}` or `shortest_edge`."""
    if not value:
        return None
    if isinstance(value, Mapping):
        edge = value.get("shortest_edge")
        found = (value.get("height", edge), value.get("width", edge))
        return None if None in found else (int(found[0]), int(found[1]))
    if isinstance(value, Sequence) and not isinstance(value, str):
        last = [int(side) for side in value][-2:]
        return (last[0], last[-1])
    return (int(value), int(value))


def _interpolation(value: Any, where: str) -> str:
    """Read a name, or an enumeration of torchvision, whose value is the name.

    Raises:
        UserError: If it is another filter than those known here.
    """
    name = str(getattr(value, "value", value) or "bilinear").lower()
    if name not in INTERPOLATIONS:
        raise UserError(
            f"{where}: interpolation {name!r} is not one of {', '.join(INTERPOLATIONS)}; set "
            "the nearest of them as interpolation in [teacher.preprocessing] or "
            "[student.preprocessing]."
        )
    return name
