"""The state of a KRLoss can be restored; an incomplete or foreign state is refused."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from foreign_networks import LikeResNet, LikeViT
from kr_losses import Pairs, make, make_pairs
from torch import Tensor, nn

from krscale import KRLoss
from krscale.config.older import FORMER_OF_KR
from krscale.errors import UserError
from krscale.kr.state import MadeFor, check_finite, check_whole, with_former
from krscale.models.tapped import TappedNetwork

Networks = tuple[nn.Module, nn.Module]
State = dict[str, Any]


@pytest.fixture(scope="module")
def networks() -> Networks:
    torch.manual_seed(0)
    return LikeResNet(6), LikeResNet(3)


@pytest.fixture(scope="module")
def state(networks: Networks) -> State:
    images, labels = torch.randn(60, 1, 12, 12), torch.arange(60) % 3
    kr = KRLoss.from_networks(*networks, [(images, labels)], allow_poor_teacher=True)
    return dict(kr.state_dict())


def changed(state: State, key: str, value: Any) -> State:
    return {**state, "_extra_state": {**state["_extra_state"], key: value}}


class Standardised(LikeResNet):
    """Divides every image by its standard deviation, which is 0 for a black image."""

    def forward(self, x: Tensor) -> Any:
        dims = (1, 2, 3)
        return super().forward((x - x.mean(dims, keepdim=True)) / x.std(dims, keepdim=True))


def test_a_network_that_gives_nan_for_a_black_image_is_built_again() -> None:
    networks = Standardised(6), Standardised(3)
    images, labels = torch.randn(60, 1, 12, 12), torch.arange(60) % 3
    kr = KRLoss.from_networks(*networks, [(images, labels)], allow_poor_teacher=True)
    again = KRLoss.from_state(*networks, kr.state_dict())
    torch.testing.assert_close(again(images, labels), kr(images, labels))


def test_a_state_without_any_one_of_its_tensors_is_refused(
    networks: Networks, state: State
) -> None:
    assert KRLoss.from_state(*networks, state)
    for name in state.keys() - {"_extra_state"}:
        cut = [{name: state[name][..., :length]} for length in (0, 2)]
        for wrong in ({}, *cut, {name: "x"}, {name: None}):
            rest = {other: value for other, value in state.items() if other != name}
            with pytest.raises(UserError, match=rf"the state of a KRLoss.*{name}"):
                KRLoss.from_state(*networks, {**rest, **wrong})


def test_the_knowledge_of_a_teacher_is_finite(networks: Networks, state: State) -> None:
    """NaN in the probes gives NaN distributions; NaN in a gain gives NaN weights."""
    for name in state.keys() - {"_extra_state"}:
        damaged = {**state, name: torch.full_like(state[name], float("nan"))}
        if name.startswith("method."):  # the student's own heads, after a diverged training
            assert KRLoss.from_state(*networks, damaged)
            continue
        with pytest.raises(UserError, match=f"{name} holds NaN or infinity"):
            KRLoss.from_state(*networks, damaged)
        with pytest.raises(UserError, match=f"{name} holds NaN or infinity"):
            KRLoss.from_state(*networks, state).load_state_dict(damaged)


def test_a_state_that_is_refused_changes_nothing(networks: Networks, state: State) -> None:
    """Otherwise another teacher's gains would be combined with this teacher's probes."""
    kr = KRLoss.from_state(*networks, state)
    for key, value in (("teacher_weights", {"other": [0.0, 0.0]}), ("student_taps", ["layer1.0"])):
        zeros = {name: torch.zeros_like(v) for name, v in state.items() if name != "_extra_state"}
        with pytest.raises(UserError, match="state is of a"):
            kr.load_state_dict(changed({**state, **zeros}, key, value))
    for name, tensor in kr.state_dict().items():
        assert name == "_extra_state" or torch.equal(tensor, state[name])


@pytest.mark.parametrize("prefix", ["", "kr."])
def test_a_state_that_is_not_finite_changes_nothing(
    prefix: str, networks: Networks, state: State
) -> None:
    kr = KRLoss.from_state(*networks, state)
    nan = torch.full_like(state["probes.linears.0.bias"], float("nan"))
    zeros = {name: torch.zeros_like(v) for name, v in state.items() if name != "_extra_state"}
    damaged = {**state, **zeros, "probes.linears.0.bias": nan}
    within = {f"{prefix}{name}": value for name, value in damaged.items()}
    with pytest.raises(UserError, match=r"probes\.linears\.0\.bias holds NaN"):
        (nn.ModuleDict({"kr": kr}) if prefix else kr).load_state_dict(within)
    for name, tensor in kr.state_dict().items():
        assert name == "_extra_state" or torch.equal(tensor, state[name])


def test_what_it_was_made_for_is_checked_by_itself(networks: Networks, state: State) -> None:
    """A user's own loading code may set it, or rename what is loaded in a hook."""
    kr = KRLoss.from_state(*networks, state)
    kr.set_extra_state(state["_extra_state"])
    for key, value in (("teacher_weights", [[0.0, 0.0]]), ("student_taps", ["layer1.0"])):
        with pytest.raises(UserError, match="state is of a"):
            kr.set_extra_state({**state["_extra_state"], key: value})


@pytest.mark.parametrize("key", list(MadeFor.model_fields))
@pytest.mark.parametrize(
    "value", [None, 3, "layer1", [None], ["a", "b", "c"], [-1, 0, 0], [3], {"a": 1}, {1: 1}]
)
def test_what_it_was_made_for_is_read_strictly(
    key: str, value: Any, networks: Networks, state: State
) -> None:
    with pytest.raises(UserError, match=r"the state of a KRLoss|unknown (setting|tap)"):
        KRLoss.from_state(*networks, changed(state, key, value))


def test_what_does_not_belong_there_is_named(networks: Networks, state: State) -> None:
    many = {f"head{number}": torch.zeros(1) for number in range(5)}
    with pytest.raises(UserError, match=r"head0 does not belong there; .*\(and 2 more\)"):
        KRLoss.from_state(*networks, {**state, **many})


def test_the_parts(networks: Networks, state: State) -> None:
    check_whole(state, state)
    check_finite(state)
    made = MadeFor.of(state)
    assert made.image_shape == (1, 12, 12)
    images = torch.zeros(2, 1, 12, 12)
    teacher = TappedNetwork.of(networks[0], images, made.teacher_taps, "teacher")
    knowledge = made.knowledge(state, teacher)
    assert torch.equal(knowledge.information_gain, state["information_gain"])
    weights = [linear.weight.shape for linear in knowledge.probes.linears]
    assert weights == [state[f"probes.linears.{tap}.weight"].shape for tap in range(len(weights))]
    assert with_former({"settings": None}) == {"settings": None}
    assert with_former({"settings": {"probe_grid": 4}})["settings"]["probe_grid"] == 4
    assert with_former({"settings": {}})["settings"]["probe_grid"] == 1


def test_state_comes_back(teacher: nn.Module, student: nn.Module, pairs: Pairs) -> None:
    kr = make(teacher, student, pairs, sparsity=0.5)
    with torch.no_grad():
        next(kr.parameters()).add_(0.1)
    file = io.BytesIO()
    torch.save(kr.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert not any("layer" in name for name in state), "the networks are not in it"
    other = make(teacher, student, make_pairs(seed=5), sparsity=0.5)  # fitted to other images
    assert other(*pairs[0]) != kr(*pairs[0])
    other.load_state_dict(state)
    assert torch.equal(other(*pairs[0]), kr(*pairs[0]))
    built = KRLoss.from_state(teacher, student, state)
    assert torch.equal(built(*pairs[0]), kr(*pairs[0]))
    assert built.settings == kr.settings
    assert built.taps == kr.taps
    # A state inside another module's state, as in a Lightning checkpoint.
    holder, holding = nn.ModuleDict({"kr": other}), nn.ModuleDict({"kr": kr})
    holder.load_state_dict(holding.state_dict())


def test_a_state_of_the_first_formulation_is_what_it_was(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    """Such a state lacks later settings; they get the first formulation's values, not today's."""
    kr = make(teacher, student, pairs, **FORMER_OF_KR)
    assert kr.probes.grid == 1
    state = kr.state_dict()
    for name in FORMER_OF_KR:
        del state["_extra_state"]["settings"][name]
    built = KRLoss.from_state(teacher, student, state)
    assert torch.equal(built(*pairs[0]), kr(*pairs[0]))
    assert built.settings == kr.settings
    make(teacher, student, pairs, **FORMER_OF_KR).load_state_dict(state)
    with pytest.raises(UserError, match="another settings"):
        make(teacher, student, pairs).load_state_dict(state)


def test_a_state_of_something_else_is_refused(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    state = make(teacher, student, pairs, sparsity=0.5).state_dict()
    with pytest.raises(UserError, match=r"another settings.*from_state"):
        make(teacher, student, pairs).load_state_dict(state)
    with pytest.raises(UserError, match="not the state of a KRLoss"):
        KRLoss.from_state(teacher, student, student.state_dict())
    with pytest.raises(UserError, match="teacher: unknown tap"):
        KRLoss.from_state(LikeViT(), student, state)


def test_a_state_is_bound_to_the_weights_of_its_teacher(
    teacher: nn.Module, student: nn.Module, pairs: Pairs
) -> None:
    state = make(teacher, student, pairs).state_dict()
    KRLoss.from_state(copy.deepcopy(teacher).to(torch.bfloat16), student.bfloat16(), state)
    permuted = copy.deepcopy(teacher)
    *_, last = (m for m in permuted.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        last.weight.copy_(last.weight.roll(1, dims=0))
    for other in (LikeResNet(6), permuted):
        with pytest.raises(UserError, match="teacher with other weights"):
            KRLoss.from_state(other, student, state)
