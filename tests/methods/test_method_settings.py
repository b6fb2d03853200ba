"""The settings of every registered method: one frozen class each, every field used and bounded."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt
from methods.test_method_contract import PATHS, context, make_batch, student_network
from pydantic import ValidationError
from torch import Tensor

from krscale.config import DistillConfig
from krscale.config.methods import MethodSettings, PosteriorConfig
from krscale.methods import METHODS, Learner, MethodContext, build_method

CLASSES = {name: method.settings_class for name, method in METHODS.items()}
SETTINGS = [(name, field) for name, cls in CLASSES.items() for field in cls.model_fields]
every_setting = pytest.mark.parametrize(("name", "field"), SETTINGS)

OTHER_VALUES: dict[str, Any] = {
    "auxiliary_interval": 2,
    "granularity": "network",
    "parameter_weight": 0.5,
    "reviewkd_warmup": 0.9,
}
"""Values for settings where half the default or another choice would not do."""
TOGETHER_WITH: dict[str, dict[str, Any]] = {
    "at_weight": {"at_reduction": "sum"},
    "alignment": {"granularity": "layer"},
    "auxiliary_until": {"auxiliary_schedule": "falling"},
    "where_schedule": {"where_weight": 2.0},
}
"""What else must be set for a setting to matter."""
ELSEWHERE = {"posterior", "probe_grid"}
"""Settings tested elsewhere: the weights of combined terms (test_method_registry.py), and how the
teacher is read, which shows in its store (tests/setup/test_kept_probes.py)."""


def other_value(cls: type[MethodSettings], field: str) -> Any:
    default = cls.model_fields[field].default
    if field in OTHER_VALUES:
        return OTHER_VALUES[field]
    if isinstance(default, str):
        return next(c for c in get_args(cls.model_fields[field].annotation) if c != default)
    return type(default)(default / 2) if default else 0.5


def outcome(name: str, settings: MethodSettings, progress: float = 0.5) -> dict[str, Tensor]:
    """Return all that a setting can change: terms and gradients, the method's own among them."""
    student = student_network()
    torch.manual_seed(5)
    method = METHODS[name](context(student), settings)
    learner = Learner(student, PATHS, method, method.reads(PATHS, PATHS).stages)
    method.begin_epoch(progress)
    terms = learner(make_batch(7)).terms
    torch.stack(list(terms.values())).sum().backward()
    gradients = {n: p.grad for n, p in learner.named_parameters() if p.grad is not None}
    return {**terms, **gradients}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[n].shape == second[n].shape and torch.equal(first[n], second[n]) for n in first
    )


@pytest.mark.parametrize("name", METHODS)
def test_defaults_build(name: str) -> None:
    cls = CLASSES[name]
    assert equal(outcome(name, cls()), outcome(name, cls.of(DistillConfig())))


@pytest.mark.parametrize(("name", "field"), [(n, f) for n, f in SETTINGS if f not in ELSEWHERE])
def test_every_setting_is_used(name: str, field: str) -> None:
    cls, together = CLASSES[name], TOGETHER_WITH.get(field, {})
    changed = cls(**{field: other_value(cls, field), **together})
    assert not equal(outcome(name, cls(**together)), outcome(name, changed))


@every_setting
def test_every_setting_is_bounded(name: str, field: str) -> None:
    cls = CLASSES[name]
    info = cls.model_fields[field]
    refused: list[Any] = [None, [], {"no": "such"}]
    for bound in info.metadata:
        if isinstance(bound, Ge):
            refused.append(bound.ge - 1)
        elif isinstance(bound, Gt):
            refused.append(bound.gt)
        elif isinstance(bound, Lt):
            refused.append(bound.lt)
        elif isinstance(bound, Le):
            refused.append(bound.le + 1)
    if isinstance(info.default, float):
        assert any(isinstance(bound, Ge | Gt) for bound in info.metadata), "no lower bound"
        refused += [float("inf"), float("nan")]
    if isinstance(info.default, str):
        refused += ["no such choice", 0]
    for value in refused:
        with pytest.raises(ValidationError):
            cls(**{field: value, **TOGETHER_WITH.get(field, {})})


@pytest.mark.parametrize("name", METHODS)
def test_settings_are_frozen_and_closed(name: str) -> None:
    settings = CLASSES[name]()
    for field in CLASSES[name].model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(settings, field, getattr(settings, field))
    with pytest.raises(ValidationError, match="Extra inputs"):
        CLASSES[name](no_such_setting=1.0)


@every_setting
def test_a_setting_is_defined_once_and_explained(name: str, field: str) -> None:
    """A name that methods share means the same in all: they inherit it from one class."""
    classes = [cls for cls in CLASSES.values() if field in cls.model_fields]
    homes = {base for cls in classes for base in cls.__mro__ if field in vars(base).get(
        "__annotations__", {})}  # fmt: skip
    assert len(homes) == 1, homes
    assert CLASSES[name].model_fields[field].description


def test_the_section_of_an_experiment_is_all_of_them() -> None:
    together = set().union(*(cls.model_fields for cls in CLASSES.values()))
    assert set(DistillConfig.model_fields) - together == {"method", "capacity"}
    assert all(issubclass(DistillConfig, cls) for n, cls in CLASSES.items() if n != "plain")
    assert set(PosteriorConfig.model_fields) == {
        name for name, method in METHODS.items() if hasattr(method, "distillation")
    }


def test_every_method_has_settings_of_its_own() -> None:
    assert len(set(CLASSES.values())) == len(METHODS)


def test_plain_needs_nothing_but_the_number_of_classes() -> None:
    assert build_method("plain", MethodContext.without_teacher(3), {}).settings_class() == (
        CLASSES["plain"]()
    )
