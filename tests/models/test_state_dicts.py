import pytest
import torch
from torch import nn

from krscale.errors import UserError
from krscale.models.state_dicts import fit, refuse_non_finite, unwrap


class Net(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.fc = nn.Linear(2, num_classes)


STATE = Net().state_dict()


def named(prefix, state=STATE):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "model.", "backbone.", "_orig_mod.", "module._orig_mod.", "model._orig_mod.",
     "net.encoder."],
)  # fmt: skip
def test_any_beginning_is_dropped_when_all_names_fit_then(prefix):
    found = fit(named(prefix), Net(), "w.pt")
    assert found.state.keys() == STATE.keys()
    assert all(torch.equal(found.state[key], STATE[key]) for key in STATE)
    left = prefix.replace("module.", "").replace("_orig_mod.", "")
    assert (f"without their beginning {left!r}" in " ".join(found.notes)) == bool(left)


def test_wrappers_in_the_middle_of_names():
    state = {key.replace("conv.", "conv._orig_mod."): value for key, value in STATE.items()}
    assert fit(state, Net(), "w.pt").state.keys() == STATE.keys()


def test_a_model_whose_own_names_have_wrappers():
    model = nn.DataParallel(Net())
    assert fit(STATE, model, "w.pt").state.keys() == model.state_dict().keys()


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.module."])
def test_weights_of_a_pytorch_that_counted_no_batches(prefix):
    """`load_state_dict` accepts them, too; the count of batches is used in training only."""
    old = {key: value for key, value in STATE.items() if "num_batches_tracked" not in key}
    found = fit(named(prefix, old), Net(), "w.pt")
    assert found.state.keys() == STATE.keys()
    assert found.state["conv.1.num_batches_tracked"] == 0
    assert "no num_batches_tracked there" in " ".join(found.notes)
    del old["conv.1.running_mean"]
    with pytest.raises(UserError, match="running_mean"):
        fit(named(prefix, old), Net(), "w.pt")


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_counters_among_the_weights_are_left_out(prefix):
    averaged = torch.optim.swa_utils.AveragedModel(Net()).state_dict()
    counted = {"total_ops": torch.ones(1), "conv.0.total_params": torch.ones(1), **STATE}
    for state in (averaged, named(prefix, counted)):
        found = fit(state, Net(), "w.pt")
        assert found.state.keys() == STATE.keys()
        assert not [note for note in found.notes if "not used" in note]


def test_what_is_not_used_is_said():
    found = fit(named("model.") | {"criterion.weight": torch.ones(3)}, Net(), "w.ckpt")
    assert "not used: criterion.weight" in " ".join(found.notes)


def test_two_beginnings_that_fit_need_a_choice():
    state = named("student.") | named("teacher.", Net().state_dict())
    with pytest.raises(UserError, match=r"begin with 'student', 'teacher'; weights_key says"):
        fit(state, Net(), "w.ckpt")
    found = fit(state, Net(), "w.ckpt", "student")
    assert torch.equal(found.state["fc.weight"], STATE["fc.weight"])


def test_a_head_of_other_classes_is_named_as_that():
    with pytest.raises(UserError, match=r"'fc' tells 7 classes apart, the data have 3"):
        fit(named("model.", Net(7).state_dict()), Net(), "w.pt")


def test_all_that_does_not_fit_is_listed_with_shapes():
    state = dict(STATE)
    state["conv.0.weight"] = torch.zeros(2, 3, 3, 3)
    state["fc.bais"] = state.pop("fc.bias")
    with pytest.raises(UserError) as caught:
        fit(state, Net(), "w.pt")
    for part in (
        "conv.0.weight has shape [2, 3, 3, 3], the model [2, 1, 3, 3]",
        "missing: fc.bias (nearest: fc.bais)",
        "unexpected: fc.bais",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "net", "model_state_dict"])
def test_the_usual_tables(wrapper):
    found = unwrap({"epoch": 3, wrapper: STATE, "optimizer": {"state": {}}}, "w.pt")
    assert found.state.keys() == STATE.keys()
    assert not found.notes


def test_averaged_weights_are_taken_by_name_only():
    other = Net().state_dict()
    content = {"model": STATE, "model_ema": other}
    found = unwrap(content, "w.pt", where="teacher")
    assert torch.equal(found.state["fc.weight"], STATE["fc.weight"])
    assert "took the weights under 'model', not those under model_ema" in found.notes[0]
    assert "teacher.weights_key" in found.notes[0]
    found = unwrap(content, "w.pt", "model_ema", "teacher")
    assert torch.equal(found.state["fc.weight"], other["fc.weight"])
    assert not found.key
    with pytest.raises(UserError, match=r"weights under 'model_ema'; teacher\.weights_key says"):
        unwrap({"model_ema": other, "epoch": 1}, "w.pt", where="teacher")


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ({"model": STATE, "net": STATE}, "", "weights under 'model', 'net'; weights_key"),
        (STATE, "emaa", "weights_key: no weights under 'emaa'. There are: conv, fc."),
        (named("ema."), "emaa", "under 'emaa'. Did you mean 'ema'? There are: ema."),
        ({"state_dict": named("student.")}, "studnet", "you mean 'student'? There are: state_dict"),
        ({"ema": named("net.")}, "ema.nett", "under 'nett'. Did you mean 'net'? There are: ema, n"),
        ({"model": STATE}, "modle", "no weights under 'modle'. Did you mean 'model'?"),
        ({"epoch": 1}, "", "'epoch' holds a int"),
        ({"state_dict": {"fc": "text"}}, "", "state_dict: not a state dict: 'fc' holds a str"),
        ({}, "", "an empty state dict"),
        ([STATE], "", "not a state dict but a list"),
    ],
)
def test_no_table_or_several(content, key, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        unwrap(content, "w.pt", key)


def test_weights_that_are_not_finite_are_named():
    refuse_non_finite(STATE, "w.pt")
    with pytest.raises(UserError, match=r"w\.pt: NaN or infinity in fc\.bias"):
        refuse_non_finite({**STATE, "fc.bias": torch.full((3,), float("nan"))}, "w.pt")


def test_names_that_are_one_without_their_wrappers_are_refused():
    other = Net().state_dict()
    state = STATE | named("module.", STATE | {"fc.bias": other["fc.bias"]})
    with pytest.raises(UserError, match=r"'fc\.bias' and 'module\.fc\.bias' are both"):
        fit(state, Net(), "w.pt")
    chosen = fit(state, Net(), "w.pt", "module")
    assert torch.equal(chosen.state["fc.bias"], other["fc.bias"])
    assert "not used: conv.0.weight" in " ".join(chosen.notes)
    assert fit(STATE | named("module."), Net(), "w.pt").state.keys() == STATE.keys()


def test_the_key_of_a_beginning_says_what_is_left_out():
    found = fit(named("a.") | named("b.", Net().state_dict()), Net(), "w.pt", "a")
    assert "not used: b.conv.0.weight" in " ".join(found.notes)
