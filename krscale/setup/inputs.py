"""Choose a network's preprocessing: from the experiment, else from the network's metadata."""

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
"""Prefix of the names of networks whose folder holds their preprocessing."""


def is_foreign(teacher: TeacherConfig) -> bool:
    """Return whether a teacher comes trained, and thus cannot adapt to its preprocessing here."""
    return bool(teacher.weights)


def starts_with_weights(config: ModelConfig) -> bool:
    """Return whether a network starts with weights that were trained with some preprocessing."""
    given = bool(getattr(config, "weights", ""))
    return given or is_pretrained(config.model, config.options)


def is_own(config: ModelConfig) -> bool:
    """Return whether a network is the user's own, neither krscale's nor a library's."""
    return config.model not in ZOO and config.model.partition(":")[0] not in LIBRARIES


def choose_preprocessing(
    config: ModelConfig, network: nn.Module | None, num_channels: int, where: str
) -> Preprocessing:
    """Return the preprocessing of a network.

    Whatever the experiment does not set is taken from the metadata of a network that comes with
    weights, or from the attribute `preprocessing` of the user's own network, which may load weights
    itself. Otherwise it is taken from the data, since a network that is trained here adapts to any
    preprocessing. A network that comes with weights and is trained further uses the data's size,
    which determines its cost. If the experiment sets a pixel range or a channel order alone, the
    network's own mean and standard deviation are expressed in these.

    Args:
        config: The config section of the network.
        network: The network, with or without weights, for its metadata.
        num_channels: Number of channels of the images.
        where: The section's name, for error messages.

    Raises:
        UserError: If the preprocessing does not fit the images.
    """
    said = None
    given = _chosen_names(config.preprocessing)
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
    """Return whether the preprocessing may differ from the default, without building a network."""
    return is_own(config) or is_chosen(config)


def is_chosen(config: ModelConfig) -> bool:
    """Return whether weights or the experiment affect the preprocessing."""
    return starts_with_weights(config) or config.preprocessing != PreprocessingConfig()


def _chosen_names(config: PreprocessingConfig) -> dict[str, str]:
    """Return the fields with names that the experiment sets."""
    names = ("pixel_range", "channel_order", "interpolation")
    return {name: getattr(config, name) for name in names if getattr(config, name) != "auto"}


def _overridden(config: PreprocessingConfig, own: Preprocessing) -> Preprocessing:
    """Return a network's own preprocessing, overridden by the experiment's settings."""
    changes: dict[str, Any] = dict(_chosen_names(config))
    own = own.expressed(
        changes.get("pixel_range", own.pixel_range), changes.get("channel_order", own.channel_order)
    )
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
