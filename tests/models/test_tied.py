"""Weights that a network has under several names."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_model
from torch import nn

from krscale.errors import UserError
from krscale.models.state_dicts import fit
from krscale.training.checkpoint import load_weights


def network() -> nn.Module:
    block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    return nn.Sequential(block, nn.ReLU(), block, nn.Linear(4, 3))


def test_a_file_that_holds_each_tensor_once_is_read(tmp_path: Path) -> None:
    kept, other = network(), network()
    kept(torch.randn(8, 4))  # its norm has statistics
    save_model(kept, str(tmp_path / "w.safetensors"))
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert len(set(file.keys())) < len(kept.state_dict())
    load_weights(tmp_path / "w.safetensors", other)
    images = torch.randn(2, 4)
    assert torch.equal(other.eval()(images), kept.eval()(images))


def test_weights_that_are_not_tied_do_not_replace_one_another() -> None:
    state = {name: value.clone() for name, value in network().state_dict().items()}
    assert fit(state, network(), "w.pt").state.keys() == state.keys()
    state["2.0.weight"] += 1.0
    with pytest.raises(UserError, match=r"w\.pt: '0\.0\.weight' and '2\.0\.weight' are one tensor"):
        fit(state, network(), "w.pt")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_wrapper_does_not_hide_a_tensor_that_is_there_once(prefix: str) -> None:
    state = network().state_dict()
    once = {prefix + name: state[name] for name in state if not name.startswith("2.")}
    assert fit(once, network(), "w.pt").state.keys() == state.keys()


def test_weights_of_a_failed_training_are_not_called_different() -> None:
    state = {name: value.clone() for name, value in network().state_dict().items()}
    for name in ("0.0.weight", "2.0.weight"):
        state[name].fill_(torch.nan)
    assert fit(state, network(), "w.pt").state["0.0.weight"].isnan().all()  # refused after it


def test_what_is_not_saved_needs_no_name() -> None:
    model, table = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), torch.ones(2)
    model[0].register_buffer("table", table)
    model[1].register_buffer("table", table, persistent=False)
    state = model.state_dict()
    assert fit(state, model, "w.pt").state.keys() == state.keys()
