"""Apply an experiment's settings for a network's taps: their stages and layouts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

from torch import nn

from krscale.config import ModelConfig
from krscale.errors import UserError
from krscale.knowledge.taps import LAYOUTS_ATTRIBUTE, settle_layouts
from krscale.models.given import is_given


def settle_taps(
    network: nn.Module, config: ModelConfig, image_shape: Sequence[int], where: str
) -> None:
    """Determine the layouts of a network's taps, so that channels are read from the right axis.

    A network that does not run, or has no such taps, is not changed: `check_network` reports it.

    Args:
        network: A network that was just built.
        config: The network's section, which lists its taps or leaves them to the network.
        image_shape: `(C, H, W)`.
        where: The config table of the network.

    Raises:
        UserError: If the channels of a tap cannot be located.
    """
    own = (*getattr(network, "tap_paths", ()), *getattr(network, "stage_paths", ()))
    paths = tuple(dict.fromkeys(config.taps or own))
    modules = dict(network.named_modules())
    if not paths or any(path not in modules for path in paths):
        return
    options = json.dumps(config.options, sort_keys=True, default=str)
    kind, shape = type(network), tuple(image_shape)
    found: dict[str, str] = {}
    if not is_given(config.model):  # each call of `krscale.search` may give another network
        found = _known(kind, config.model, options, paths, shape, config.tap_layout)  # type: ignore[arg-type]
    if not found:
        declared = "" if config.tap_layout == "auto" else config.tap_layout
        try:
            settle_layouts(network, paths, image_shape, declared, where)
        except UserError:
            raise
        except Exception:  # noqa: BLE001 - `check_network` says why it does not run
            return
        found.update(getattr(network, LAYOUTS_ATTRIBUTE))
    setattr(network, LAYOUTS_ATTRIBUTE, dict(found))


def declare_stages(network: nn.Module, taps: tuple[str, ...], stage_ends: tuple[int, ...]) -> None:
    """Set the taps and stages that an experiment lists for a network as the network's own.

    Args:
        network: A network that was just built.
        taps: Module paths in depth order, without the classifier.
        stage_ends: For each stage the 1-based number of its last tap, the classifier being last.
    """
    # The features of the last stage are those of its last tap before the classifier, if it has any.
    last_taps = dict.fromkeys(taps[min(end, len(taps)) - 1] for end in stage_ends)
    # Set in __dict__, because a network may override __setattr__.
    network.__dict__.update(tap_paths=taps, stage_ends=stage_ends, stage_paths=tuple(last_taps))


@lru_cache(maxsize=64)
def _known(*key: object) -> dict[str, str]:
    """Return the cached layouts of an architecture; the caller fills them the first time."""
    return {}
