"""Read a network's own preprocessing from metadata of timm, torchvision or Hugging Face.

It reads only attributes and files, and thus needs none of these libraries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from krscale.errors import UserError, unknown_name
from krscale.foreign import parsing, read_bounded
from krscale.models.preprocessing import PRESETS, Numbers, Preprocessing, preset
from krscale.models.resizing import INTERPOLATIONS, Size

HF_FILE = "preprocessor_config.json"
_MOST_BYTES = 16 * 1024**2
_ATTRIBUTES = ("preprocessing", "pretrained_cfg", "default_cfg", "transforms")
"""Attributes that hold it: the user's own, timm's two names, and torchvision's weight presets."""
_FIELDS = (
    "mean", "std", "input_size", "crop_size", "pixel_range", "channel_order", "interpolation"
)  # fmt: skip
_FILTER = "interpolation"
_NOTHING: Mapping[str, str] = MappingProxyType({})
_NAMED = "normalisation"
"""Mean and standard deviation by name, as in an experiment; not used by any library."""
_OF_DATA = "data"
_MISSPELT = 0.85
"""Similarity from which a name counts as misspelt. timm also writes names such as
`test_input_size`, which are less similar to `input_size` than this."""
_HF_STEPS = (
    "do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_flip_channel_order",
    "do_convert_rgb",
)  # fmt: skip
"""Supported steps of Hugging Face's processors; `do_convert_rgb` concerns files only."""
_SET_YOURSELF = (
    "Delete the file, and set normalisation (or mean and std), pixel_range, channel_order and "
    "input_size yourself in [teacher.preprocessing] or [student.preprocessing]."
)
_PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of filters, which Hugging Face stores."""


def preprocessing_of(
    network: nn.Module | None, folder: Path | None = None, given: Mapping[str, str] = _NOTHING
) -> Preprocessing | None:
    """Return the preprocessing that a network, or the folder it came from, specifies.

    Args:
        network: A network that may have an attribute `pretrained_cfg` or `default_cfg` (timm's:
            `mean`, `std`, `input_size`, `interpolation`), `transforms` (torchvision's: `mean`,
            `std`, `crop_size`, `interpolation`), or `preprocessing`, with any of these names and
            those of an experiment; each is a mapping or an object.
        folder: A folder that may hold Hugging Face's `preprocessor_config.json`.
        given: Fields that the experiment sets. Its `interpolation` is used instead of the network's
            own, which is then not read. Its `pixel_range` and `channel_order` tell what the numbers
            of an attribute `preprocessing` mean that has neither; libraries mean `0..1` and `rgb`.

    Returns:
        The preprocessing; None if neither specifies one.

    Raises:
        UserError: If the specification is not supported.
    """
    if folder is not None and (folder / HF_FILE).is_file():
        return _of_hugging_face(folder / HF_FILE, given.get(_FILTER, ""))
    found = (_of_attribute(network, name, given) for name in _ATTRIBUTES)
    return next((said for said in found if said is not None), None)


def own_preprocessing(
    network: nn.Module | None, given: Mapping[str, str] = _NOTHING
) -> Preprocessing | None:
    """Return the preprocessing in the attribute `preprocessing` of the user's network.

    Args:
        network: The network, with or without weights.
        given: As for `preprocessing_of`.

    Raises:
        UserError: If the specification is not supported.
    """
    return _of_attribute(network, _ATTRIBUTES[0], given)


def _of_attribute(
    network: nn.Module | None, name: str, given: Mapping[str, str]
) -> Preprocessing | None:
    said = getattr(network, name, None)
    if isinstance(said, Preprocessing):
        return said
    # A module is part of the network, which applies it by itself.
    if said is None or isinstance(said, nn.Module):
        return None
    where = f"{type(network).__name__}.{name}"
    if name != _ATTRIBUTES[0]:
        return _of_fields(said, where, {key: given[key] for key in given if key == _FILTER})
    if isinstance(said, Mapping):
        _refuse_misspelt(said, where)
    return _of_fields(said, where, given, _field(said, _NAMED))


def _refuse_misspelt(said: Mapping[str, Any], where: str) -> None:
    """Refuse misspelt names in the specification of the user's own network.

    Otherwise they would be ignored. Other names beside known ones are ignored, for instance if the
    user passes on timm's metadata.
    """
    known = (*_FIELDS, _NAMED)
    others = [str(name) for name in said if name not in known]
    for name in others:
        if get_close_matches(name.lower(), known, n=1, cutoff=_MISSPELT):
            raise unknown_name("name", name, known, where)
    if others and len(others) == len(said):
        error = unknown_name("name", others[0], known, where)
        raise UserError(f"{error} If it means something else, give the attribute another name.")


def _of_fields(
    said: Any, where: str, given: Mapping[str, str], normalisation: Any = None
) -> Preprocessing | None:
    fields = {name: _field(said, name) for name in _FIELDS}
    size_name = "crop_size" if fields["input_size"] is None else "input_size"
    decisive = [fields[name] for name in _FIELDS if name != _FILTER]
    if all(value is None for value in (*decisive, normalisation)):
        return None
    mean, std = (_numbers(fields[name], f"{where}: {name}") for name in ("mean", "std"))
    if (mean is None) != (std is None):
        raise UserError(f"{where}: has one of mean and std; both are needed, or neither.")
    pixel_range = str(fields["pixel_range"] or given.get("pixel_range", "0..1"))
    channel_order = str(fields["channel_order"] or given.get("channel_order", "rgb")).lower()
    if normalisation is not None:
        mean, std = _by_name(normalisation, mean, pixel_range, channel_order, where)
    try:
        return Preprocessing(
            mean,
            std,
            pixel_range,
            channel_order,
            _size(fields[size_name], f"{where}: {size_name}"),
            given.get(_FILTER) or _interpolation(fields[_FILTER], where),
        )
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(where) else f"{where}: {message}") from None


def _by_name(
    name: Any, mean: Numbers | None, pixel_range: str, channel_order: str, where: str
) -> tuple[Numbers, Numbers] | tuple[None, None]:
    """Return mean and standard deviation by name; None for both selects the data's own.

    Raises:
        UserError: If there is no such name, or numbers are given as well.
    """
    allowed = (_OF_DATA, *PRESETS)
    if name not in allowed:
        raise unknown_name(_NAMED, str(name), allowed, where)
    if mean is not None:
        raise UserError(f"{where}: mean and std stand for {_NAMED} = {name!r}; give one of them.")
    return (None, None) if name == _OF_DATA else preset(name, pixel_range, channel_order)


def _of_hugging_face(path: Path, interpolation: str) -> Preprocessing:
    """Read the configuration of a Hugging Face image processor.

    Raises:
        UserError: If it is not JSON, has an unsupported step, or lacks the numbers of a step.
    """
    with parsing(f"{path}: not readable"):
        said = json.loads(read_bounded(path, _MOST_BYTES))
    if not isinstance(said, Mapping):
        raise UserError(f"{path}: holds a {type(said).__name__}, not the settings of a processor.")
    _refuse_unknown_steps(said, path)
    scales = bool(said.get("do_rescale", True))
    if scales:
        _check_rescaling(said, path)
    mean, std = _hugging_face_numbers(said, path)
    return Preprocessing(
        mean,
        std,
        "0..1" if scales else "0..255",
        "bgr" if said.get("do_flip_channel_order") else "rgb",
        _hugging_face_size(said, path),
        interpolation
        or _interpolation(_PILLOW.get(said.get("resample", 2), said.get("resample")), str(path)),
    )


def _refuse_unknown_steps(said: Mapping[str, Any], path: Path) -> None:
    for name, value in said.items():
        is_step = str(name).startswith(("do_", "include_"))
        if is_step and value and name not in _HF_STEPS:
            raise UserError(
                f"{path}: {name}: a step that is not known here ({', '.join(_HF_STEPS)} are). "
                f"{_SET_YOURSELF}"
            )


def _check_rescaling(said: Mapping[str, Any], path: Path) -> None:
    factor = said.get("rescale_factor", 1 / 255)
    if isinstance(factor, bool) or not isinstance(factor, int | float):
        raise UserError(f"{path}: rescale_factor: {factor!r} is not a number.")
    if abs(factor * 255 - 1) > 1e-3 or said.get("rescale_offset"):
        raise UserError(
            f"{path}: rescale_factor: pixels are multiplied by {factor:g} where 1/255 is known, or "
            f"moved (rescale_offset). {_SET_YOURSELF}"
        )


def _hugging_face_numbers(said: Mapping[str, Any], path: Path) -> tuple[Numbers, Numbers]:
    # Processors of MobileViT have these numbers but no normalisation, which their files do not
    # show.
    kind = str(said.get("image_processor_type") or said.get("feature_extractor_type") or "")
    if not said.get("do_normalize", not kind.startswith("MobileViT")):
        return (0.0,), (1.0,)
    found = []
    for name in ("image_mean", "image_std"):
        numbers = _numbers(said.get(name), f"{path}: {name}")
        if numbers is None:
            raise UserError(
                f"{path}: {name}: missing, and do_normalize is not false, so that the processor "
                f"takes numbers that are written elsewhere. {_SET_YOURSELF}"
            )
        found.append(numbers)
    if said.get("do_flip_channel_order") and any(len(set(numbers)) > 1 for numbers in found):
        raise UserError(
            f"{path}: do_flip_channel_order: with numbers that differ between channels, nothing "
            f"tells which is of which. {_SET_YOURSELF}"
        )
    return found[0], found[1]


def _hugging_face_size(said: Mapping[str, Any], path: Path) -> Size | None:
    """Return the size after scaling and cropping; None if neither is done."""
    scales, cuts = said.get("do_resize", True), said.get("do_center_crop")
    if not scales and not cuts:
        return None
    if not scales:
        raise UserError(f"{path}: do_center_crop without do_resize. {_SET_YOURSELF}")
    name = "crop_size" if cuts else "size"
    found = _size(said.get(name), f"{path}: {name}")
    if found is None:
        raise UserError(f"{path}: {name}: missing, and images are scaled. {_SET_YOURSELF}")
    return found


def _field(said: Any, name: str) -> Any:
    return said.get(name) if isinstance(said, Mapping) else getattr(said, name, None)


def _numbers(value: Any, where: str) -> Numbers | None:
    if value is None:
        return None
    value = value.tolist() if hasattr(value, "tolist") else value  # an array, or a tensor
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if not values or not all(_is_number(number) for number in values):
        raise UserError(f"{where}: {value!r} is not a number, or one for each channel.")
    return tuple(float(number) for number in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _size(value: Any, where: str) -> Size | None:
    """Read `224`, `[224]`, `(3, 224, 224)`, `{"height": 224, "width": 224}` or `shortest_edge`.

    Raises:
        UserError: If it is anything else, e.g. only the longest edge, or has the channels last.
    """
    if value is None or (isinstance(value, Mapping | list | tuple) and not value):
        return None
    sides: Any = (value, value)
    if isinstance(value, Mapping):
        edge = value.get("shortest_edge")
        sides = (value.get("height", edge), value.get("width", edge))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        channels_last = len(value) == 3 and value[2] in (1, 3) and value[0] not in (1, 3)
        sides = () if len(value) > 3 or channels_last else (value[-2:][0], value[-1])
    known = sides and all(_is_number(side) and side >= 1 and side == int(side) for side in sides)
    if not known:
        raise UserError(
            f"{where}: {value!r} is no size that is known here: a number, [height, width], "
            "(channels, height, width), or height and width, or shortest_edge, by name."
        )
    return (int(sides[0]), int(sides[1]))


def _interpolation(value: Any, where: str) -> str:
    """Read a name, or a member of torchvision's enumeration, whose value is the name.

    Raises:
        UserError: If the filter is not supported.
    """
    name = str(getattr(value, "value", value) or "bilinear").lower()
    if name not in INTERPOLATIONS:
        raise UserError(
            f"{where}: interpolation {name!r} is not one of {', '.join(INTERPOLATIONS)}; set "
            "the nearest of them as interpolation in [teacher.preprocessing] or "
            "[student.preprocessing]."
        )
    return name
