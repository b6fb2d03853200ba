import inspect
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
    module.unclear = lambda depth, k, *, num_classes: nn.Linear(1, num_classes)
    module.passes_on = lambda num_classes, **settings: other(num_classes, **settings)
    module.built = nn.Linear(1, 1)

    def other(n_labels, in_chans=3):
        return nn.Linear(in_chans, n_labels)

    def lazy(num_classes, *, runs=False):
        layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
        network = nn.Sequential(layers, nn.LazyBatchNorm1d())
        if runs:
            network(torch.zeros(2, 1, 8, 8))
        return network

    module.lazy = lazy

    class Named(nn.Linear):
        def __init__(self, n_labels=5, in_chans=3, depth=1):
            super().__init__(in_chans * depth, n_labels)

    module.Named = Named
    module.compiled = lambda n_classes: nn.DataParallel(nn.Linear(1, n_classes))
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


@pytest.mark.parametrize("name", sorted(ZOO))
def test_networks_that_no_machine_can_build_are_refused_at_once(name):
    """Else a billion blocks take hours to build, and sizes beyond torch's give a traceback."""
    numbers = {"num_blocks", "num_stages", "stem_channels", "expansion", "depth"}
    for option in numbers & set(inspect.signature(ZOO[name]).parameters):
        for value in (10**9, 10**30, 0, -1, 2.5, True):
            with pytest.raises(UserError, match=rf"{name}: {option} must be a whole number from 1"):
                build(name, **{option: value})
    for width in (10**9, 10**30):
        with pytest.raises(UserError, match="width must be a whole number from 1 to 1,000,000"):
            ZOO[name](10, 1, width)


def test_a_network_larger_than_the_memory_is_refused(monkeypatch):
    def too_large(num_classes, in_channels, width):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nof which no machine has")

    monkeypatch.setitem(ZOO, "resnet", too_large)
    with pytest.raises(UserError, match=r"student\.model: resnet cannot be built with .*width=4: "):
        build("resnet")


def test_a_gpu_whose_memory_is_taken_is_no_mistake(monkeypatch):
    """A trial that runs out of memory, known by its class of error, is run again alone."""

    def without_memory(num_classes, in_channels, width):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setitem(ZOO, "resnet", without_memory)
    with pytest.raises(torch.OutOfMemoryError):
        build("resnet")


def test_foreign_network(foreign):
    model = build("my_models:tiny", bias=False)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert len(list(model.parameters())) == 1


def test_foreign_network_with_open_keywords_gets_every_option(foreign):
    assert build("my_models:anything", depth=5).weight.shape == (5, 4)


def test_foreign_option_is_checked(foreign):
    with pytest.raises(UserError, match=r"unknown option of my_models:tiny 'biass'.*'bias'"):
        build("my_models:tiny", biass=False)


def test_foreign_network_gets_what_it_takes(foreign):
    assert build("my_models:fixed").weight.shape == (10, 1)


def test_foreign_network_may_call_its_arguments_otherwise(foreign):
    assert build("my_models:Named", depth=2).weight.shape == (10, 2)


def test_what_nobody_takes_is_left_out(foreign):
    assert build("my_models:passes_on").weight.shape == (10, 3)


def test_what_is_missing_is_named(foreign):
    with pytest.raises(UserError, match=r"my_models:unclear needs 'depth', 'k', which.*depth = "):
        build("my_models:unclear")
    assert build("my_models:unclear", depth=1, k=2).weight.shape == (10, 1)


def test_names_of_what_krscale_sets_are_no_options(foreign):
    with pytest.raises(UserError, match=r"student\.options: 'n_labels' is set by krscale"):
        build("my_models:Named", n_labels=7)


def test_a_network_that_is_built_already_is_refused(foreign):
    with pytest.raises(UserError, match=r"is a network that is built already \(Linear\)"):
        build("my_models:built")


def test_layers_without_sizes_are_refused(foreign):
    said = r"student\.model: my_models:lazy has .*: '0\.1' \(LazyLinear\), '1' \(LazyBatchNorm1d\)"
    for device in ("cpu", "meta"):
        with pytest.raises(UserError, match=said), torch.device(device):
            build("my_models:lazy")
    model = build("my_models:lazy", runs=True)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_wrappers_are_taken_off(foreign):
    assert set(build("my_models:compiled").state_dict()) == {"weight", "bias"}


def test_a_key_for_a_network_of_the_zoo_is_refused():
    with pytest.raises(UserError, match=r"student\.output_key: 'logits' is set, but resnet"):
        build_model("resnet", num_classes=2, in_channels=1, width=1, options={},
                    output_key="logits", where="student")  # fmt: skip


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


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def net(num_classes:\n", r"SyntaxError: .*broken_net\.py, line 1"),
        ("import os\nimport no_such_thing\n", r"no_such_thing.*broken_net\.py, line 2"),
        ("1 / 0\n", r"ZeroDivisionError: division by zero .*broken_net\.py, line 1"),
        ("from os import no_such_name\n", r"ImportError: .*broken_net\.py, line 1"),
        ("import sys\nsys.exit('usage: train')\n", r"SystemExit: usage: train .*, line 2"),
        (
            "def helper():\n    raise KeyError('x')\ndef net(num_classes):\n    helper()\n",
            r"fails when it is built with num_classes=10: KeyError: 'x' .*broken_net\.py, line 2",
        ),
    ],
)
def test_a_mistake_in_a_users_module_is_located(monkeypatch, tmp_path, source, message):
    (tmp_path / "broken_net.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(UserError, match=message):
            build("broken_net:net")
    finally:
        sys.modules.pop("broken_net", None)


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
