"""Experiments stored by older versions of krscale, as this version interprets them.

A field that is newer than a stored experiment gets today's default, because a new field's default
is what the code did before. Where a default differs from that on purpose, this module holds the
former behaviour.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NEWER = "at_reduction"
"""The field of `[distill]` that was added with the changes of losses below: older experiments lack
it."""
_BACKGROUND = "background"
"""The field of `[data]` that was added with the handling of transparency."""
FORMER_OF_KR: Mapping[str, Any] = {
    "probe_grid": 1,
    "alignment": "depth",
    "auxiliary_schedule": "constant",
    "auxiliary_until": 0.7,
    "auxiliary_interval": 1,
    "where_weight": 0.0,
    "where_schedule": "constant",
}
"""Settings of KR that were added with its second formulation or since, at the values that give the
first."""
FORMER_WEIGHT = 2.0
"""Default of `kr_weight` in the first formulation. Stored runs hold the value itself."""
MENDED = "logit_standardisation"
"""A method whose loss was corrected; no setting restores the former loss."""


def with_former_defaults(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored experiment with the fields it lacks, where today's default would be wrong.

    Before `distill.at_reduction` existed, attention transfer summed over positions. An experiment
    that does not use it gets today's default, which has no effect. The images of a network that
    came with weights were normalised by the data's statistics, whatever its own metadata said.
    Before `data.background` existed, transparency was ignored. KR was in its first formulation.

    Args:
        stored: All sections of an experiment, as its version of krscale wrote them.
    """
    stored = _with_former_preprocessing(stored)
    if _took_colours_as_they_are(stored):
        stored = {**stored, "data": {**stored["data"], _BACKGROUND: "ignore"}}
    if not isinstance(stored.get("distill"), Mapping):
        return dict(stored)
    former: dict[str, Any] = {}
    if _is_older(stored):
        former[_NEWER] = "sum" if "at" in _methods(stored) else "mean"
    distill = dict(stored["distill"])
    if uses_kr(stored):
        former |= FORMER_OF_KR
    elif not FORMER_OF_KR.keys() & distill.keys() and distill.get("kr_weight") == FORMER_WEIGHT:
        del distill["kr_weight"]  # nothing uses it, so it takes today's default
    return {**stored, "distill": {**former, **distill}}


def uses_kr(stored: Mapping[str, Any]) -> bool:
    """Return whether KR is among the methods of an experiment, alone or combined."""
    return "kr" in _methods(stored)


def uses_mended_method(stored: Mapping[str, Any]) -> bool:
    """Return whether a stored experiment has trials whose loss is computed differently today."""
    return _is_older(stored) and MENDED in _methods(stored)


def _with_former_preprocessing(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the experiment with the former normalisation of networks that came with weights."""
    found = dict(stored)
    for name in ("teacher", "student"):
        network = found.get(name)
        if not isinstance(network, Mapping) or "preprocessing" in network:
            continue
        options = network.get("options")
        pretrained = options.get("pretrained") if isinstance(options, Mapping) else False
        # Networks of the zoo have no metadata about their preprocessing.
        if ":" in str(network.get("model")) and (network.get("weights") or pretrained):
            found[name] = {**network, "preprocessing": {"normalisation": "data"}}
    return found


def _took_colours_as_they_are(stored: Mapping[str, Any]) -> bool:
    data = stored.get("data")
    if not isinstance(data, Mapping) or _BACKGROUND in data:
        return False
    return data.get("source") in ("image_folder", "parquet")


def _is_older(stored: Mapping[str, Any]) -> bool:
    distill = stored.get("distill")
    return isinstance(distill, Mapping) and _NEWER not in distill


def _methods(stored: Mapping[str, Any]) -> set[str]:
    """Return all methods of an experiment, including each part of a combined method."""
    search = stored.get("search")
    searched = search.get("methods", ()) if isinstance(search, Mapping) else ()
    names = [*searched, stored["distill"].get("method", "")]
    return {part for name in names for part in str(name).split("+")}
