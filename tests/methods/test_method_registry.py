"""Methods are found by name and built from the settings they name."""

from __future__ import annotations

import pytest
import torch

from krscale.config import DistillConfig
from krscale.errors import KrscaleError, UserError
from krscale.methods import (
    METHODS,
    POSTERIORS,
    MethodContext,
    build_method,
    check_posterior,
    method_settings,
)

CONTEXT = MethodContext(3, 2, (1, 2), torch.tensor([0.4, 0.8]), (4,), ((), ()), None, torch.ones(2))


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown method 'dks'\. Did you mean '(kd|dkd)'"):
        build_method("dks", CONTEXT, {})
    with pytest.raises(UserError, match="unknown method"):
        method_settings("krr")


def test_unknown_posterior_names_the_nearest() -> None:
    settings = {**DistillConfig().model_dump(), "posterior": {"dkdd": 1.0}}
    message = r"distill\.posterior: unknown posterior method 'dkdd'\. Did you mean 'dkd'"
    with pytest.raises(UserError, match=message):
        build_method("kr", CONTEXT, settings)
    with pytest.raises(UserError, match="unknown posterior method 'kr'"):
        check_posterior(["kd", "kr"])
    check_posterior(POSTERIORS)


def test_a_weight_of_zero_does_not_excuse_an_unknown_posterior() -> None:
    settings = {**DistillConfig().model_dump(), "posterior": {"nonsense": 0.0}}
    with pytest.raises(UserError, match="nonsense"):
        build_method("kr", CONTEXT, settings)


def test_missing_settings_are_named() -> None:
    with pytest.raises(KrscaleError, match="KD needs the settings kd_weight, temperature"):
        build_method("kd", CONTEXT, {"ce_weight": 1.0})


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_is_a_field_of_the_config(name: str) -> None:
    assert set(method_settings(name)) <= set(DistillConfig.model_fields)


def test_every_field_of_the_config_is_some_methods_setting() -> None:
    used = {setting for name in METHODS for setting in method_settings(name)}
    assert set(DistillConfig.model_fields) - used == {"method", "capacity"}


def test_settings_of_posterior_methods_count_as_krs() -> None:
    settings = method_settings("kr")
    assert "dkd_nontarget_weight" in settings
    assert "posterior" in settings
    assert not {f"{name}_weight" for name in POSTERIORS} & set(settings)
    assert len(set(settings)) == len(settings)


def test_settings_of_simple_methods() -> None:
    assert method_settings("plain") == ()
    assert method_settings("label_smoothing") == ("label_smoothing",)
    assert set(method_settings("kd")) == {"ce_weight", "kd_weight", "temperature"}


def test_posteriors_are_the_methods_on_logits() -> None:
    assert set(POSTERIORS) == {"kd", "dkd", "dist", "logit_standardisation"}
    assert all(METHODS[name] is method for name, method in POSTERIORS.items())


def test_config_refuses_negative_posterior_weights() -> None:
    with pytest.raises(ValueError, match="posterior"):
        DistillConfig(posterior={"kd": -1.0})
