"""The methods by name, and the construction of one from settings.

A name is a key of `METHODS`, or `kr+TERM[+TERM]`: KR combined with methods on the logits, each a
key of `POSTERIORS` with the weight `distill.posterior.TERM`.
"""

from __future__ import annotations

from krscale.config.methods import KRSettings, SettingsTable
from krscale.errors import UserError, unknown_name
from krscale.methods.at import AT
from krscale.methods.base import LogitMethod, Method, MethodContext
from krscale.methods.batch import Batch
from krscale.methods.crd import CRD
from krscale.methods.dist import DIST
from krscale.methods.dkd import DKD
from krscale.methods.feature_method import FeatureMethod
from krscale.methods.fitnet import FitNet
from krscale.methods.kd import KD
from krscale.methods.kr import KR
from krscale.methods.label_smoothing import LabelSmoothing
from krscale.methods.learner import Learner, LearnerOutput
from krscale.methods.logit_standardisation import LogitStandardisation
from krscale.methods.pkt import PKT
from krscale.methods.plain import Plain
from krscale.methods.reviewkd import ReviewKD
from krscale.methods.rkd import RKD

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
    "compares_samples",
    "method_settings",
    "parse_method",
    "reads_taps",
    "takes_mixed_labels",
    "takes_unlabelled",
]

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
    "reviewkd": ReviewKD,
    "rkd": RKD,
    "kr": KR,
}
"""Every method by the name a config uses."""

POSTERIORS: dict[str, type[LogitMethod]] = {
    method.term: method for method in METHODS.values() if issubclass(method, LogitMethod)
}
"""Methods on the logits that can be combined with KR, by the name of their term."""


def parse_method(name: str, where: str = "") -> tuple[type[Method], tuple[str, ...]]:
    """Return the method that a name stands for, and the terms it is combined with.

    Args:
        name: A key of `METHODS`, or one that takes terms and those terms: `"kr+dkd+dist"`.
        where: File and key of the name, for the error message.

    Raises:
        UserError: If a part is unknown (the message names the nearest one) or is named twice, or
            if the method cannot be combined.

    Example:
        >>> method, terms = parse_method("kr+dkd+dist")
        >>> method.__name__, terms
        ('KR', ('dkd', 'dist'))
        >>> parse_method("kd+dkd")
        Traceback (most recent call last):
        krscale.errors.UserError: method 'kd' cannot be combined with others ...; only kr can.
    """
    prefix = f"{where}: " if where else ""
    if not isinstance(name, str):
        raise UserError(f"{prefix}a text such as 'kr' is needed (got {name!r}).")
    base, *terms = name.split("+")
    if base not in METHODS:
        raise unknown_name("method", base, METHODS, where)
    if terms and METHODS[base] is not KR:
        raise UserError(
            f"{prefix}method {base!r} cannot be combined with others (got {name!r}); only kr can."
        )
    for term in terms:
        if term not in POSTERIORS:
            raise unknown_name(f"term of {name!r}", term, POSTERIORS, where)
        if terms.count(term) > 1:
            raise UserError(f"{prefix}{name!r} names the term {term!r} twice.")
    return METHODS[base], tuple(terms)


def takes_mixed_labels(name: str) -> bool:
    """Return whether a method, with all methods it is combined with, accepts mixed images.

    Raises:
        UserError: If the method is unknown.

    Example:
        >>> takes_mixed_labels("kr+kd"), takes_mixed_labels("kr+dkd")  # DKD needs the one class
        (True, False)
    """
    method, terms = parse_method(name)
    return all(part.takes_mixed_labels for part in (method, *(POSTERIORS[t] for t in terms)))


def compares_samples(name: str) -> bool:
    """Return whether a method, or one it is combined with, compares the samples of a batch.

    Raises:
        UserError: If the method is unknown.

    Example:
        >>> compares_samples("kr"), compares_samples("kr+dist")
        (False, True)
    """
    method, terms = parse_method(name)
    return any(part.compares_samples for part in (method, *(POSTERIORS[t] for t in terms)))


def reads_taps(name: str) -> bool:
    """Return whether a method may read the taps of its student; methods on the logits do not.

    Raises:
        UserError: If the method is unknown.

    Example:
        >>> reads_taps("kr"), reads_taps("kd"), reads_taps("plain")
        (True, False, False)
    """
    method, _ = parse_method(name)
    return method.needs_teacher and not issubclass(method, LogitMethod)


def takes_unlabelled(name: str) -> bool:
    """Return whether a method, with all methods it is combined with, accepts unlabelled images.

    Raises:
        UserError: If the method is unknown.

    Example:
        >>> takes_unlabelled("kd"), takes_unlabelled("plain")
        (True, False)
    """
    method, terms = parse_method(name)
    return all(part.takes_unlabelled for part in (method, *(POSTERIORS[t] for t in terms)))


def build_method(name: str, context: MethodContext, settings: SettingsTable) -> Method:
    """Build a method from its entries in a table of settings.

    Args:
        name: See `parse_method`.
        context: The context of the teacher and the student.
        settings: A `DistillConfig`, or a table with the names of `method_settings(name)`, where a
            dot stands for a nested table. Other entries are ignored, so that one table serves every
            method; missing entries have their defaults. A term of weight 0 is left out.

    Raises:
        UserError: If the method, or a term it is combined with, is unknown.
    """
    method, terms = parse_method(name)
    own = method.settings_class.of(settings)
    if not terms:
        return method(context, own).float()  # independent of the default dtype
    assert isinstance(own, KRSettings)  # noqa: S101  # parse_method refuses terms of any other
    weights = dict(own.posterior)
    combined = [_build_term(t, context, settings, weights[t]) for t in terms if weights[t] > 0.0]
    return KR(context, own, combined).float()


def method_settings(name: str) -> tuple[str, ...]:
    """Return the names of the settings of a method and of the terms it is combined with.

    The weight of a term is `posterior.TERM`.

    Raises:
        UserError: If the method is unknown.

    Example:
        >>> method_settings("dkd")
        ('ce_weight', 'temperature', 'dkd_weight', 'dkd_target_weight', 'dkd_nontarget_weight')
        >>> [name for name in method_settings("kr+dkd") if "dkd" in name]
        ['posterior.dkd', 'dkd_target_weight', 'dkd_nontarget_weight']
    """
    method, terms = parse_method(name)
    names = [field for field in method.settings_class.model_fields if field != "posterior"]
    for term in terms:
        names.append(f"posterior.{term}")
        fields = POSTERIORS[term].settings_class.model_fields
        names += [f for f in fields if f not in names and f != f"{term}_weight"]
    return tuple(names)


def _build_term(
    term: str, context: MethodContext, settings: SettingsTable, weight: float
) -> LogitMethod:
    method = POSTERIORS[term]
    return method(context, method.settings_class.of(settings, **{f"{term}_weight": weight}))
