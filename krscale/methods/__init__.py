"""The methods by name, and how one is built from settings."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from krscale.errors import KrscaleError, unknown_name
from krscale.methods.base import (
    Batch,
    Learner,
    LearnerOutput,
    LogitMethod,
    Method,
    MethodContext,
)
from krscale.methods.dist import DIST
from krscale.methods.dkd import DKD
from krscale.methods.kd import KD
from krscale.methods.kr import KR
from krscale.methods.label_smoothing import LabelSmoothing
from krscale.methods.logit_standardisation import LogitStandardisation
from krscale.methods.plain import Plain

__all__ = [
    "METHODS",
    "POSTERIORS",
    "Batch",
    "Learner",
    "LearnerOutput",
    "LogitMethod",
    "Method",
    "MethodContext",
    "build_method",
    "check_posterior",
    "method_settings",
]

_M = TypeVar("_M", bound=Method)

METHODS: dict[str, type[Method]] = {
    "plain": Plain,
    "label_smoothing": LabelSmoothing,
    "kd": KD,
    "dkd": DKD,
    "dist": DIST,
    "logit_standardisation": LogitStandardisation,
    "kr": KR,
}
"""Every method by the name a config uses."""

POSTERIORS: dict[str, type[LogitMethod]] = {
    method.term: method for method in METHODS.values() if issubclass(method, LogitMethod)
}
"""Methods on the logits that KR can be combined with, by the name of their term."""


def build_method(name: str, context: MethodContext, settings: Mapping[str, Any]) -> Method:
    """Build a method from the settings it names.

    Args:
        name: A key of `METHODS`.
        context: What is known of teacher and student.
        settings: At least `method_settings(name)`; others are ignored, so that one table serves
            every method. `posterior` maps names of `POSTERIORS` to weights; 0 leaves one out.

    Raises:
        UserError: If the method, or a posterior method, is unknown.
        KrscaleError: If a setting that the method needs is missing.
    """
    return _build(_find(name), context, settings)


def method_settings(name: str) -> tuple[str, ...]:
    """Return the names of the settings a method uses, those of its posterior methods included.

    Raises:
        UserError: If the method is unknown.
    """
    names = list(_keywords(_find(name)))
    if "posterior" in names:
        for term, method in POSTERIORS.items():
            names += [k for k in _keywords(method) if k not in names and k != f"{term}_weight"]
    return tuple(names)


def check_posterior(terms: Iterable[str], where: str = "distill.posterior") -> None:
    """Refuse posterior methods that nobody registered.

    Raises:
        UserError: Naming the nearest one.
    """
    for term in terms:
        if term not in POSTERIORS:
            raise unknown_name("posterior method", term, POSTERIORS, where)


def _build(method: type[_M], context: MethodContext, settings: Mapping[str, Any]) -> _M:
    needed = _keywords(method)
    missing = sorted(set(needed) - settings.keys())
    if missing:
        raise KrscaleError(f"{method.__name__} needs the settings {', '.join(missing)}")
    arguments = {keyword: settings[keyword] for keyword in needed}
    if "posterior" in arguments:
        arguments["posterior"] = _build_posterior(arguments["posterior"], context, settings)
    return method(context, **arguments)


def _build_posterior(
    weights: Mapping[str, float], context: MethodContext, settings: Mapping[str, Any]
) -> list[LogitMethod]:
    check_posterior(weights)
    built = []
    for term, weight in weights.items():
        if weight > 0.0:
            own = {**settings, f"{term}_weight": weight}
            built.append(_build(POSTERIORS[term], context, own))
    return built


def _find(name: str) -> type[Method]:
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]


def _keywords(method: type[Method]) -> tuple[str, ...]:
    """Return the keyword-only arguments of a method's constructor."""
    parameters = inspect.signature(method).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)
