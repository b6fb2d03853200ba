"""Experiments stored by older versions of krscale, as this one understands them.

A field that is newer than a stored experiment has today's default, because a new field's default is
what the code did before. Where a default differs from that on purpose, this module says what the
code did.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NEWER = "at_reduction"
"""The field of `[distill]` that came with the losses changed below: older experiments lack it."""
_BACKGROUND = "background"
"""The field of `[data]` that came with the reading of transparency."""
FORMER_OF_KR: Mapping[str, Any] = {
    "probe_grid": 1,
    "alignment": "depth",
    "auxiliary_schedule": "constant",
    "auxiliary_until": 0.7,
    "where_weight": 0.0,
    "where_schedule": "constant",
}
"""Settings of KR that came with its second formulation, as the first one was."""
FORMER_WEIGHT = 2.0
"""Default of `kr_weight` in the first formulation. Runs have kept the value itself."""
MENDED = "logit_standardisation"
"""A method that computed another loss before; no setting brings that back."""


def with_former_defaults(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored experiment with the fields it lacks, where today's default would be wrong.

    Attention transfer summed over positions before `distill.at_reduction` was there. An experiment
    that does not use it gets today's default, which changes nothing in it. A network that came with
    weights was normalised by the data's statistics, whatever its own metadata said. Before
    `data.background` was there, transparent images were read as if they were not. KR was in its
    first formulation.

    Args:
        stored: All sections of an experiment that its version of krscale had written out.
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
        del distill["kr_weight"]  # which nothing uses has today's default
    return {**stored, "distill": {**former, **distill}}


def uses_kr(stored: Mapping[str, Any]) -> bool:
    """Return whether an experiment has KR among its methods, alone or combined."""
    return "kr" in _methods(stored)


def uses_mended_method(stored: Mapping[str, Any]) -> bool:
    """Return whether a stored experiment has trials whose loss is another today."""
    return _is_older(stored) and MENDED in _methods(stored)


def _with_former_preprocessing(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the experiment with what networks with weights of their own were normalised by."""
    found = dict(stored)
    for name in ("teacher", "student"):
        network = found.get(name)
        if not isinstance(network, Mapping) or "preprocessing" in network:
            continue
        options = network.get("options")
        pretrained = options.get("pretrained") if isinstance(options, Mapping) else False
        # Networks of the zoo say nothing of themselves.
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
    """Return all methods of an experiment, those that others are combined with too."""
    search = stored.get("search")
    searched = search.get("methods", ()) if isinstance(search, Mapping) else ()
    names = [*searched, stored["distill"].get("method", "")]
    return {part for name in names for part in str(name).split("+")}
