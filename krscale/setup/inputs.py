"""How a network's images are prepared: as the experiment says, else as the network says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from krscale.config import ModelConfig, PreprocessingConfig, TeacherConfig
from krscale.models import ZOO, is_pretrained
from krscale.models.libraries import LIBRARIES
from krscale.models.metadata import own_preprocessing, preprocessing_of
from krscale.models.preprocessing import DEFAULT, Preprocessing, preset

_FOLDER = "hf:"
"""Beginning of the names of networks whose folder holds their preprocessing."""


def is_foreign(teacher: TeacherConfig) -> bool:
    """Return whether a teacher comes trained: nothing adapts it to what it is shown here."""
    return bool(teacher.weights)


def starts_with_weights(config: ModelConfig) -> bool:
    """Return whether a network begins with weights that were trained with some preprocessing."""
    given = bool(getattr(config, "weights", ""))
    return given or is_pretrained(config.model, config.options)


def is_own(config: ModelConfig) -> bool:
    """Return whether a network is the user's, of neither krscale nor a library."""
    return config.model not in ZOO and config.model.partition(":")[0] not in LIBRARIES


def choose_preprocessing(
    config: ModelConfig, network: nn.Module | None, num_channels: int, where: str
) -> Preprocessing:
    """Return the preprocessing of a network.

    What the experiment leaves open is taken from the metadata of a network that comes with weights,
    or from the attribute `preprocessing` of a network of the user's, which may load weights itself;
    and from the data otherwise: a network that is trained here learns whatever it is shown. One
    that comes with weights and is trained on keeps the data's size, which decides what it costs.

    Args:
        config: The section of the network.
        network: With or without weights; asked for its metadata.
        num_channels: Of the images.
        where: The section's name, for the message of an error.

    Raises:
        UserError: If it does not fit the images.
    """
    said = None
    given = config.preprocessing.interpolation.replace("auto", "")
    if starts_with_weights(config):
        is_folder = config.model.startswith(_FOLDER)
        folder = Path(config.model.removeprefix(_FOLDER)).expanduser()
        said = preprocessing_of(network, folder if is_folder else None, given)
    elif is_own(config):
        said = own_preprocessing(network, given)
    if said and not (isinstance(config, TeacherConfig) and is_foreign(config)):
        said = replace(said, input_size=None)
    chosen = _overridden(config.preprocessing, said or DEFAULT)
    chosen.check_channels(num_channels, f"{where}.preprocessing")
    return chosen


def may_differ(config: ModelConfig) -> bool:
    """Return whether the preprocessing may be another than the default; no network is built."""
    return is_own(config) or is_chosen(config)


def is_chosen(config: ModelConfig) -> bool:
    """Return whether weights or the experiment have a say in the preprocessing."""
    return starts_with_weights(config) or config.preprocessing != PreprocessingConfig()


def _overridden(config: PreprocessingConfig, own: Preprocessing) -> Preprocessing:
    """Return a network's own preprocessing with what the experiment says in its place."""
    changes: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("pixel_range", "channel_order", "interpolation")
        if getattr(config, name) != "auto"
    }
    if config.input_size:
        changes["input_size"] = (config.input_size[0], config.input_size[-1])
    fields = {**own.__dict__, **changes}
    if config.mean:
        fields |= {"mean": config.mean, "std": config.std}
    elif config.normalisation == "data":
        fields |= {"mean": None, "std": None}
    elif config.normalisation != "auto":
        mean, std = preset(config.normalisation, fields["pixel_range"], fields["channel_order"])
        fields |= {"mean": mean, "std": std}
    return Preprocessing(**fields)
