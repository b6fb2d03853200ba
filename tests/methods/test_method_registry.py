"""Methods are found by name and built from the settings they name."""

from __future__ import annotations

import pytest
import torch

from krscale.config import DistillConfig, field_paths
from krscale.config.methods import KDSettings, KRSettings, PosteriorConfig, SettingsTable
from krscale.errors import UserError
from krscale.methods import (
    METHODS,
    POSTERIORS,
    MethodContext,
    build_method,
    method_settings,
    parse_method,
)

CONTEXT = MethodContext(
    3, 2, (1, 2), torch.tensor([0.4, 0.8]), ((4,),), ((), ()), None, torch.ones(2)
)


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown method 'dks'\. Did you mean '(kd|dkd)'"):
        build_method("dks", CONTEXT, {})
    with pytest.raises(UserError, match="unknown method"):
        method_settings("krr")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kr+dkdd", r"unknown term of 'kr\+dkdd' 'dkdd'\. Did you mean 'dkd'"),
        ("kr+kr", r"unknown term of 'kr\+kr' 'kr'"),
        ("kr+", r"unknown term of 'kr\+' ''"),
        ("krr+dkd", r"unknown method 'krr'\. Did you mean 'kr'"),
        ("kd+dkd", r"'kd' cannot be combined with others \(got 'kd\+dkd'\); only kr can"),
        ("kr+kd+kd", r"'kr\+kd\+kd' names the term 'kd' twice"),
    ],
)
def test_bad_combinations_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_method(name, "search.methods")
    assert str(caught.value).startswith("search.methods: ")


def test_a_name_may_combine_kr_with_terms() -> None:
    assert parse_method("kd") == (METHODS["kd"], ())
    assert parse_method("kr+dist+dkd") == (METHODS["kr"], ("dist", "dkd"))


@pytest.mark.parametrize(
    "settings",
    [
        DistillConfig(temperature=3.0, posterior={"kd": 0.7}, kd_weight=5.0),
        KRSettings(temperature=3.0, posterior={"kd": 0.7}),
        {"temperature": 3.0, "posterior": {"kd": 0.7}, "of another method": 1},
    ],
    ids=["config", "own settings", "table"],
)
def test_a_term_of_a_combination_has_the_weight_posterior_gives(settings: SettingsTable) -> None:
    method = build_method("kr+kd+dist", CONTEXT, settings)
    kd, dist = method.posterior
    assert (kd.term_weight, kd.temperature) == (0.7, 3.0)
    assert dist.term_weight == PosteriorConfig().dist


def test_a_method_takes_its_own_part_of_a_table() -> None:
    distill = DistillConfig(kd_weight=3.0, temperature=2.0)
    assert KDSettings.of(distill) == KDSettings(kd_weight=3.0, temperature=2.0)
    assert KDSettings.of(distill, kd_weight=1.5).kd_weight == 1.5
    assert KDSettings.of({"kd_weight": 3.0, "sparsity": 0.9}) == KDSettings(kd_weight=3.0)
    with pytest.raises(ValueError, match="kd_weight"):
        KDSettings.of({"kd_weight": -1.0})


COMBINED = "+".join(["kr", *POSTERIORS])


@pytest.mark.parametrize("name", [*METHODS, COMBINED])
def test_every_setting_is_a_field_of_the_config(name: str) -> None:
    paths = {path.removeprefix("distill.") for path in field_paths()}
    assert set(method_settings(name)) <= paths


def test_every_field_of_the_config_is_some_methods_setting() -> None:
    used = {setting for name in (*METHODS, COMBINED) for setting in method_settings(name)}
    assert set(field_paths(DistillConfig)) - used == {"method", "capacity"}


def test_settings_of_a_combination() -> None:
    alone, combined = method_settings("kr"), method_settings("kr+dkd")
    assert set(combined) - set(alone) == {
        "posterior.dkd", "dkd_target_weight", "dkd_nontarget_weight",
    }  # fmt: skip
    assert len(set(method_settings(COMBINED))) == len(method_settings(COMBINED))


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
