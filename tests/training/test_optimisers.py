import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from krscale.config import TrainConfig, load
from krscale.errors import UserError
from krscale.training.optimisers import (
    SCHEDULES,
    build_optimiser,
    check_optimiser,
    learning_rate_factor,
    restore_optimiser,
)


def settings(**changes: object) -> TrainConfig:
    return TrainConfig(**{"learning_rate": 0.01, **changes})


def test_the_default_is_sgd_with_nesterov_momentum() -> None:
    found = build_optimiser(nn.Linear(2, 2), TrainConfig())
    assert type(found) is torch.optim.SGD
    decayed, others = found.param_groups
    for group in (decayed, others):
        assert (group["lr"], group["momentum"], group["nesterov"], group["fused"]) == (
            0.1, 0.9, True, True,
        )  # fmt: skip
    assert (decayed["weight_decay"], others["weight_decay"]) == (5e-4, 0.0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", "AdamW"), ("AdamW", "AdamW"), ("nadam", "NAdam"), ("rmsprop", "RMSprop"),
     ("Adagrad", "Adagrad"), ("sgd", "SGD")],
)  # fmt: skip
def test_a_step_of_any_optimiser_by_name(name: str, kind: str) -> None:
    network = nn.Linear(2, 2)
    found = build_optimiser(network, settings(optimizer=name))
    assert type(found).__name__ == kind
    before = network.weight.detach().clone()
    network(torch.ones(1, 2)).sum().backward()
    found.step()
    assert not torch.equal(network.weight, before)


def test_options_reach_the_optimiser() -> None:
    options = {"betas": [0.8, 0.95], "eps": 1e-6}
    found = build_optimiser(nn.Linear(1, 1), settings(optimizer="adamw", optimizer_options=options))
    assert list(found.param_groups[0]["betas"]) == [0.8, 0.95]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adamm"}, r"unknown optimizer 'adamm'\. Did you mean 'adam"),
        ({"optimizer": "lbfgs"}, r"'lbfgs' cannot be used here: it evaluates"),
        ({"optimizer_options": {"beta": 1}, "optimizer": "adamw"}, r"'beta'.*'betas'"),
        ({"optimizer_options": {"lr": 1.0}}, r"'lr' is set by train\.learning_rate"),
        ({"optimizer": "adamw", "optimizer_options": {"betas": [2, 3]}}, r"AdamW refuses"),
        ({"optimizer_options": {"momentum": 0.5}}, r"'momentum' is set by train\.momentum"),
        ({"optimizer": "adamw", "momentum": 0.5}, r"train\.momentum: 0\.5 is for SGD; .*betas"),
        ({"optimizer": "adam", "optimizer_options": {"betas": [0.9]}}, r"Adam refuses .*IndexErr"),
        ({"optimizer": "adafactor", "optimizer_options": {"eps": [0.001]}}, r"Adafactor refuses"),
        ({"optimizer": "adam", "optimizer_options": {"betas": [0.9, 0.99, 0.9]}}, r"Adam refuses"),
        ({"optimizer": "adamw", "optimizer_options": {"betas": ["a", "b"]}}, r"AdamW refuses"),
        ({"optimizer": "rmsprop", "optimizer_options": {"eps": "small"}}, r"RMSprop refuses"),
        (
            {"optimizer_options": {"dampening": 0.5}},
            r"SGD refuses .*'nesterov': True.*krsc",
        ),
        ({"optimizer_options": {"differentiable": True}}, r"SGD refuses .*in-place operation"),
        ({"optimizer_options": {"maximize": True}}, r"'maximize' is set by krscale itself, as"),
        ({"optimizer": "rprop"}, r"train\.weight_decay: Rprop has none"),
    ],
)
def test_what_torch_does_not_have_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_optimiser(settings(**changes))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ["foreach", "fused"])
@pytest.mark.parametrize("value", [True, False])
def test_how_steps_are_computed_is_the_users_to_say(kind: str, name: str, value: bool) -> None:
    chosen = settings(optimizer=kind, optimizer_options={name: value})
    check_optimiser(chosen)
    group = build_optimiser(nn.Linear(1, 1), chosen).param_groups[0]
    assert group[name] is value
    assert name == "fused" or not group["fused"]


def test_a_check_changes_no_random_numbers() -> None:
    before = torch.get_rng_state()
    check_optimiser(settings(optimizer="adamw"))
    with torch.inference_mode():
        check_optimiser(settings())
    assert torch.equal(torch.get_rng_state(), before)


def test_other_optimisers_need_a_learning_rate() -> None:
    with pytest.raises(UserError, match=r"train\.learning_rate must be given"):
        load(None, ["train.optimizer=adamw"])
    assert load(None, ["train.optimizer=adamw", "train.learning_rate=1e-3"])


@pytest.mark.parametrize("check", [check_optimiser, lambda s: build_optimiser(nn.Linear(1, 1), s)])
def test_what_is_no_optimiser_is_said_before_its_learning_rate(
    check: Callable[[TrainConfig], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"unknown optimizer 'adamm'\. Did you mean 'adam'"):
        check(load(None, ["train.optimizer=adamm"]).train)
    with pytest.raises(UserError, match="'lbfgs' cannot be used here: it evaluates"):
        check(load(None, ["train.optimizer=lbfgs"]).train)
    newer = type("Newer", (torch.optim.Adam,), {})
    monkeypatch.setattr(torch.optim, "Newer", newer, raising=False)
    with pytest.raises(UserError, match="learning_rate must be given with train"):
        check(load(None, ["train.optimizer=newer"]).train)


@pytest.mark.parametrize(
    ("name", "middle", "end"),
    [("cosine", 0.5, 0.0), ("linear", 0.5, 0.0), ("constant", 1.0, 1.0), ("step", 0.1, 0.01)],
)
def test_schedules_after_a_linear_warm_up(name: str, middle: float, end: float) -> None:
    factor = learning_rate_factor(settings(num_epochs=5, warmup_epochs=1.0, schedule=name), 10)
    warmup = [factor(step) for step in range(10)]
    assert warmup == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert factor(10) == 1.0
    assert math.isclose(factor(30), middle)
    assert math.isclose(factor(50), end, abs_tol=1e-12)


def test_every_schedule_is_allowed_and_no_other() -> None:
    for name in SCHEDULES:
        assert settings(schedule=name).schedule == name
    with pytest.raises(UserError, match="'cosine', 'linear', 'step' or 'constant'"):
        load(None, ["train.schedule=cos"])


@pytest.mark.parametrize("name", ["sgd", "adamw", "adagrad"])
@pytest.mark.parametrize("setting", ["learning_rate", "weight_decay"])
def test_a_rate_that_is_too_large_is_no_mistake_in_the_options(name: str, setting: str) -> None:
    check_optimiser(settings(**{"optimizer": name, setting: 1e30}))


def test_weights_whose_first_gradient_comes_later() -> None:
    late = {}
    for fused in (True, False):
        torch.manual_seed(0)
        network = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
        optimiser = build_optimiser(
            network, settings(optimizer_options={} if fused else {"fused": False})
        )
        for step in range(4):
            optimiser.zero_grad()
            used = network if step > 1 else network[:1]  # as stochastic depth skips blocks
            sum(layer(torch.ones(3, 2)).square().sum() for layer in used).backward()
            optimiser.step()
        late[fused] = network[1].weight.detach()
    torch.testing.assert_close(late[True], late[False])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weights_of_few_digits_learn(kind: torch.dtype, momentum: float) -> None:
    """The fused step of torch 2.13 on a CPU leaves them as they are."""
    network = nn.Linear(64, 3).to(kind)
    before = [weight.detach().float() for weight in network.parameters()]
    given = settings(learning_rate=0.5, momentum=momentum, weight_decay=0.0)
    optimiser = build_optimiser(network, given)
    for weight in network.parameters():
        weight.grad = torch.ones_like(weight)
    optimiser.step()
    step = 0.5 * (1.0 + momentum)  # the first momentum is the gradient; Nesterov adds it once more
    for weight, old in zip(network.parameters(), before, strict=True):
        torch.testing.assert_close(weight.float(), old - step, rtol=0.02, atol=0.02)
    with pytest.raises(UserError, match=r"optimizer_options: fused: on a CPU, torch's fused SGD"):
        build_optimiser(network, settings(optimizer_options={"fused": True}))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_complex_weights_learn(name: str) -> None:
    network = nn.Linear(3, 2, dtype=torch.complex64)
    before = network.weight.detach().clone()
    optimiser = build_optimiser(network, settings(optimizer=name))
    network(torch.ones(1, 3, dtype=torch.complex64)).abs().sum().backward()
    optimiser.step()
    assert bool((network.weight != before).all())
    with pytest.raises(UserError, match="fused: torch has no fused step for complex weights"):
        build_optimiser(network, settings(optimizer=name, optimizer_options={"fused": True}))


def test_a_state_of_another_device_does_not_bring_its_fused_step() -> None:
    network = nn.Linear(64, 3).to(torch.bfloat16)
    optimiser = build_optimiser(network, settings())
    state = optimiser.state_dict()
    for group in state["param_groups"]:
        group["fused"] = True  # as on a GPU
    restore_optimiser(optimiser, state)
    before = network.weight.detach().clone()
    network(torch.ones(1, 64, dtype=torch.bfloat16)).sum().backward()
    optimiser.step()
    assert bool((network.weight != before).all())
