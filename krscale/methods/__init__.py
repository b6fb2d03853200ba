"""The methods by name, and how one is built from settings.

A name is a key of `METHODS`, or `kr+TERM[+TERM]`: KR combined with methods on the logits, each a
key of `POSTERIORS` and weighted by `distill.posterior.TERM`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from krscale.errors import KrscaleError, UserError, unknown_name
from krscale.methods.at import AT
from krscale.methods.base import (
    Batch,
    Learner,
    LearnerOutput,
    LogitMethod,
    Method,
    MethodContext,
)
from krscale.methods.crd import CRD
from krscale.methods.dist import DIST
from krscale.methods.dkd import DKD
from krscale.methods.feature_method import FeatureMethod
from krscale.methods.fitnet import FitNet
from krscale.methods.kd import KD
from krscale.methods.kr import KR
from krscale.methods.label_smoothing import LabelSmoothing
from krscale.methods.logit_standardisation import LogitStandardisation
from krscale.methods.pkt import PKT
from krscale.methods.plain import Plain

__all__ = [
    "METHODS",
    "POSTERIORS",
    "Batch",
    "FeatureMethod",
    "Learner",
    "LearnerOutput",
    "LogitMethod",
    "Method",
    "MethodContext",
    "build_method",
    "method_settings",
    "parse_method",
]

_M = TypeVar("_M", bound=Method)

METHODS: dict[str, type[Method]] = {
    "plain": Plain,
    "label_smoothing": LabelSmoothing,
    "kd": KD,
    "dkd": DKD,
    "dist": DIST,
    "logit_standardisation": LogitStandardisation,
    "fitnet": FitNet,
    "at": AT,
    "pkt": PKT,
    "crd": CRD,
    "kr": KR,
}
"""Every method by the name a config uses."""

POSTERIORS: dict[str, type[LogitMethod]] = {
    method.term: method for method in METHODS.values() if issubclass(method, LogitMethod)
}
"""Methods on the logits that KR can be combined with, by the name of their term."""


def parse_method(name: str, where: str = "") -> tuple[type[Method], tuple[str, ...]]:
    """Return the method that a name stands for, and the terms it is combined with.

    Args:
        name: A key of `METHODS`, or one that takes terms and those terms: `"kr+dkd+dist"`.
        where: File and key of the name, for the message.

    Raises:
        UserError: If a part is unknown (names the nearest) or named twice, or if the method cannot
            be combined.
    """
    base, *terms = name.split("+")
    if base not in METHODS:
        raise unknown_name("method", base, METHODS, where)
    prefix = f"{where}: " if where else ""
    if terms and "posterior" not in _keywords(METHODS[base]):
        combinable = [m for m in METHODS if "posterior" in _keywords(METHODS[m])]
        raise UserError(
            f"{prefix}method {base!r} cannot be combined with others (got {name!r}); only "
            f"{', '.join(combinable)} can."
        )
    for term in terms:
        if term not in POSTERIORS:
            raise unknown_name(f"term of {name!r}", term, POSTERIORS, where)
        if terms.count(term) > 1:
            raise UserError(f"{prefix}{name!r} names the term {term!r} twice.")
    return METHODS[base], tuple(terms)


def build_method(name: str, context: MethodContext, settings: Mapping[str, Any]) -> Method:
    """Build a method from the settings it names.

    Args:
        name: See `parse_method`.
        context: What is known of teacher and student.
        settings: At least `method_settings(name)`, with dots as nested mappings; others are
            ignored, so that one table serves every method. A term of weight 0 is left out.

    Raises:
        UserError: If the method, or a term it is combined with, is unknown.
        KrscaleError: If a setting that the method needs is missing.
    """
    method, terms = parse_method(name)
    weights = settings.get("posterior", {})
    if missing := [f"posterior.{term}" for term in terms if term not in weights]:
        raise KrscaleError(f"{name} needs the settings {', '.join(missing)}")
    combined = [
        _build(POSTERIORS[term], context, {**settings, f"{term}_weight": weights[term]})
        for term in terms
        if weights[term] > 0.0
    ]
    return _build(method, context, {**settings, "posterior": combined})


def method_settings(name: str) -> tuple[str, ...]:
    """Return the names of the settings a method uses, those of the terms it is combined with too.

    The weight of a term is `posterior.TERM`.

    Raises:
        UserError: If the method is unknown.
    """
    method, terms = parse_method(name)
    names = [keyword for keyword in _keywords(method) if keyword != "posterior"]
    for term in terms:
        names.append(f"posterior.{term}")
        keywords = _keywords(POSTERIORS[term])
        names += [k for k in keywords if k not in names and k != f"{term}_weight"]
    return tuple(names)


def _build(method: type[_M], context: MethodContext, settings: Mapping[str, Any]) -> _M:
    needed = _keywords(method)
    missing = sorted(set(needed) - settings.keys())
    if missing:
        raise KrscaleError(f"{method.__name__} needs the settings {', '.join(missing)}")
    return method(context, **{keyword: settings[keyword] for keyword in needed})


def _keywords(method: type[Method]) -> tuple[str, ...]:
    """Return the keyword-only arguments of a method's constructor."""
    parameters = inspect.signature(method).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)
