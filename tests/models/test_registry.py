import sys
import types

import pytest
import torch
from torch import nn

from krscale.errors import UserError
from krscale.models import ZOO, build_model


def build(name, **options):
    return build_model(
        name, num_classes=10, in_channels=1, width=4, options=options, where="student"
    )


@pytest.fixture
def foreign(monkeypatch):
    """A module of the user's own, importable as `my_models`."""
    module = types.ModuleType("my_models")

    def tiny(num_classes, in_channels, width, *, bias=True):
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 64, num_classes, bias=bias))

    def anything(**settings):
        return nn.Linear(settings["width"], settings["depth"])

    module.tiny = tiny
    module.anything = anything
    module.fixed = lambda num_classes: nn.Linear(1, num_classes)
    module.no_module = lambda num_classes, in_channels, width: "weights"
    module.number = 3
    monkeypatch.setitem(sys.modules, "my_models", module)
    return module


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_zoo_network_keeps_the_zoo_contract(name):
    model = build_model(name, num_classes=7, in_channels=3, width=2, options={})
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 7)
    modules = dict(model.named_modules())
    assert [path for path in model.tap_paths if path not in modules] == []
    assert len(set(model.tap_paths)) == len(model.tap_paths)
    assert list(model.stage_ends) == sorted(set(model.stage_ends))
    assert model.stage_ends[-1] == len(model.tap_paths) + 1


@pytest.mark.parametrize("name", sorted(ZOO))
def test_taps_fire_in_depth_order(name):
    model = build_model(name, num_classes=7, in_channels=3, width=2, options={})
    fired = []
    for path in model.tap_paths:
        model.get_submodule(path).register_forward_hook(
            lambda _m, _i, _o, path=path: fired.append(path)
        )
    model(torch.randn(2, 3, 16, 16))
    assert tuple(fired) == model.tap_paths


@pytest.mark.parametrize("name", sorted(ZOO))
def test_width_is_the_capacity_dial(name):
    sizes = [
        sum(
            p.numel()
            for p in build_model(
                name, num_classes=7, in_channels=3, width=width, options={}
            ).parameters()
        )
        for width in range(1, 9)
    ]
    assert sizes == sorted(set(sizes))


def test_options_reach_the_network():
    model = build("resnet", num_blocks=1, num_stages=2)
    assert model.stage_ends == (1, 2)


def test_unknown_network_names_the_nearest():
    with pytest.raises(UserError, match=r"student\.model: unknown model 'resnett'\..*'resnet'"):
        build("resnett")


def test_unknown_option_names_the_nearest():
    with pytest.raises(UserError, match=r"student\.options: .*'num_block'\..*'num_blocks'"):
        build("resnet", num_block=2)


def test_the_dial_is_no_option():
    with pytest.raises(UserError, match=r"student\.options: 'width' is set by krscale"):
        build("resnet", width=3)


def test_foreign_network(foreign):
    model = build("my_models:tiny", bias=False)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert len(list(model.parameters())) == 1


def test_foreign_network_with_open_keywords_gets_every_option(foreign):
    assert build("my_models:anything", depth=5).weight.shape == (5, 4)


def test_foreign_option_is_checked(foreign):
    with pytest.raises(UserError, match=r"unknown option of my_models:tiny 'biass'.*'bias'"):
        build("my_models:tiny", biass=False)


def test_foreign_network_without_the_dial_is_refused(foreign):
    with pytest.raises(UserError, match="my_models:fixed must take num_classes, in_channels"):
        build("my_models:fixed")


def test_foreign_callable_that_builds_no_network(foreign):
    with pytest.raises(UserError, match=r"my_models:no_module returned str, not a torch"):
        build("my_models:no_module")


def test_foreign_name_that_does_not_exist(foreign):
    with pytest.raises(UserError, match=r"unknown callable of my_models 'tinny'.*'tiny'"):
        build("my_models:tinny")


def test_foreign_name_that_is_not_callable(foreign):
    with pytest.raises(UserError, match=r"'my_models:number' is not callable \(int\)"):
        build("my_models:number")


@pytest.mark.parametrize("name", ["no_such_package.models:tiny", ":tiny", ".models:tiny"])
def test_foreign_module_that_cannot_be_imported(name):
    with pytest.raises(UserError, match=r"student\.model: .* cannot import"):
        build(name)


def test_errors_inside_a_foreign_network_keep_their_traceback(foreign):
    def broken(num_classes, in_channels, width):
        raise ZeroDivisionError("in the user's own code")

    foreign.broken = broken
    with pytest.raises(ZeroDivisionError):
        build("my_models:broken")


FAKE_TIMM = """
from torch import nn

def list_models():
    return ["resnet18", "resnet34"]

def is_model(name):
    return name in list_models()

def create_model(name, *, num_classes, in_chans, drop_rate=0.0):
    model = nn.Sequential(nn.Flatten(), nn.Linear(in_chans * 64, num_classes))
    model.made = (name, drop_rate)
    return model
"""


@pytest.fixture
def timm(monkeypatch, tmp_path):
    """Make `import timm` run the given source."""

    def install(source):
        (tmp_path / "timm.py").write_text(source)
        monkeypatch.delitem(sys.modules, "timm", raising=False)
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    sys.modules.pop("timm", None)


def test_timm_network(timm):
    timm(FAKE_TIMM)
    model = build("timm:resnet34", drop_rate=0.5)
    assert model.made == ("resnet34", 0.5)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_unknown_timm_network_names_the_nearest(timm):
    timm(FAKE_TIMM)
    with pytest.raises(UserError, match=r"unknown timm model 'resnet81'.*'resnet18'"):
        build("timm:resnet81")


def test_unknown_timm_option(timm):
    timm(FAKE_TIMM)
    with pytest.raises(UserError, match=r"student\.options: timm cannot build .*drop_rat"):
        build("timm:resnet18", drop_rat=0.5)


@pytest.mark.parametrize("error", ["ImportError", "RuntimeError"])
def test_timm_that_cannot_be_imported_names_the_extra(timm, error):
    timm(f"raise {error}('operator torchvision::nms does not exist')")
    with pytest.raises(UserError, match=rf"{error}: operator .*krscale\[vision\]"):
        build("timm:resnet18")
