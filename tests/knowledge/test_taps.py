"""Taps are read by path, leave no trace, and work through wrappers."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import partial

import pytest
import torch
from programs import scripted
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from krscale.errors import UserError
from krscale.knowledge.taps import TapOutputs, TappedModel, check_taps, pool


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.Sequential(nn.Conv2d(4, 5, 3), nn.Conv2d(5, 6, 3))
        self.head = nn.Linear(6, 3)
        self.unused = nn.Linear(2, 2)
        self.pair = Pair()

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.blocks(self.stem(images))
        first, _ = self.pair(hidden)
        logits: Tensor = self.head(first.mean(dim=(2, 3)))
        return logits


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


PATHS = ("stem", "blocks.0")


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def assert_taps(outputs: TapOutputs, net: Net, images: Tensor) -> None:
    stem = net.stem(images)
    torch.testing.assert_close(outputs.features[0], stem)
    torch.testing.assert_close(outputs.features[1], net.blocks[0](stem))
    torch.testing.assert_close(outputs.logits, net(images))
    assert len(outputs.features) == 2


def num_hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) for m in module.modules())


def test_reads_the_named_blocks(net: Net, images: Tensor) -> None:
    tapped = TappedModel(net, PATHS)
    assert_taps(tapped(images), net, images)
    assert num_hooks(tapped) == 0


def test_order_is_that_of_the_paths(net: Net, images: Tensor) -> None:
    outputs = TappedModel(net, ("blocks.0", "stem"))(images)
    assert [f.shape[1] for f in outputs.features] == [5, 4]


def test_gradients_flow_through_taps(net: Net, images: Tensor) -> None:
    TappedModel(net, PATHS)(images).features[0].sum().backward()
    assert net.stem.weight.grad is not None
    assert net.head.weight.grad is None


class Runs(Net):
    """Runs its blocks by a given function, which may or may not keep their gradients."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.run(self.blocks, self.stem(images))
        logits: Tensor = self.head(hidden.mean(dim=(2, 3)))
        return logits


def without_gradients(blocks: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        hidden: Tensor = blocks(images)
    return hidden


def in_checkpoint(blocks: nn.Module, images: Tensor, reentrant: bool) -> Tensor:
    hidden: Tensor = checkpoint(blocks, images, use_reentrant=reentrant)
    return hidden


def one_by_one(blocks: nn.Module, images: Tensor) -> Tensor:
    for block in blocks.children():
        images = in_checkpoint(block, images, reentrant=True)
    return images


LOST = [without_gradients, partial(in_checkpoint, reentrant=True)]
KEPT = [partial(in_checkpoint, reentrant=False), one_by_one]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("run", LOST)
def test_a_block_that_would_teach_nothing_is_refused(
    run: Callable[[nn.Module, Tensor], Tensor], images: Tensor
) -> None:
    """Otherwise only its heads would learn, not the student, and nothing would fail."""
    tapped = TappedModel(Runs(run), PATHS)
    with pytest.raises(UserError, match=r"tap 'blocks\.0': this block was run without gradients"):
        tapped(images)
    with torch.no_grad():
        assert len(tapped(images).features) == 2
    tapped.requires_grad_(False)
    assert len(tapped(images).features) == 2  # frozen


def test_a_block_that_is_left_out_hands_on_what_it_gets(images: Tensor) -> None:
    """Stochastic depth leaves blocks out in this way; here the stem before it is frozen."""
    network = Runs(lambda blocks, hidden: blocks[1](blocks[0](hidden)))
    network.blocks = nn.Sequential(LeftOut(4), nn.Conv2d(4, 6, 3))
    network.stem.requires_grad_(False)
    tapped = TappedModel(network, PATHS)
    outputs = tapped(images)
    assert not outputs.features[1].requires_grad
    assert outputs.logits.requires_grad


class LeftOut(nn.Conv2d):
    def __init__(self, size: int) -> None:
        super().__init__(size, size, 3)

    def forward(self, input: Tensor) -> Tensor:
        return input


@pytest.mark.parametrize("run", KEPT)
def test_gradients_of_blocks_in_checkpoints(
    run: Callable[[nn.Module, Tensor], Tensor], images: Tensor
) -> None:
    network = Runs(run)
    TappedModel(network, PATHS)(images).features[1].sum().backward()
    assert network.blocks[0].weight.grad is not None
    assert network.stem.weight.grad is not None


def test_a_scripted_part_takes_no_tap(images: Tensor) -> None:
    network = nn.Sequential(scripted(nn.Sequential(nn.Conv2d(1, 2, 3))), nn.Flatten())
    with pytest.raises(UserError, match="tap '0' is TorchScript, whose blocks cannot be read"):
        TappedModel(network, ("0",))


def test_no_hook_is_left_when_the_network_fails(net: Net) -> None:
    tapped = TappedModel(net, PATHS)
    with pytest.raises(RuntimeError):
        tapped(torch.zeros(1, 2, 8, 8))
    assert num_hooks(tapped) == 0


def test_state_is_the_networks_own(net: Net) -> None:
    state = TappedModel(net, PATHS).state_dict()
    assert list(state) == [f"model.{name}" for name in net.state_dict()]


def test_copies_and_pickles(net: Net, images: Tensor) -> None:
    tapped = TappedModel(net, PATHS)
    tapped(images)
    twin = copy.deepcopy(tapped)
    file = io.BytesIO()
    torch.save(tapped, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    with torch.no_grad():
        net.stem.weight.zero_()  # the copies must be copies
    for other in (twin, loaded):
        assert other.model.stem.weight.abs().sum() > 0
        assert_taps(other(images), other.model, images)


@pytest.mark.parametrize("wrap", ["inside", "outside", "in_place"])
def test_compiled(net: Net, images: Tensor, wrap: str) -> None:
    torch._dynamo.reset()
    tapped: nn.Module = TappedModel(net, PATHS)
    if wrap == "inside":
        tapped = TappedModel(torch.compile(net, backend="eager"), PATHS)
    elif wrap == "outside":
        tapped = torch.compile(tapped, backend="eager")
    else:
        tapped.compile(backend="eager")
    for step in range(3):  # later calls must not reuse the first call's tensors
        assert_taps(tapped(images + step), net, images + step)
    assert num_hooks(net) == 0


def compiled_in_place(net: Net) -> nn.Module:
    net.compile(backend="eager")
    return net


def with_compiled_part(net: Net) -> nn.Module:
    net.blocks.compile(backend="eager")
    return net


def with_compiled_forward(net: Net) -> nn.Module:
    net.forward = torch.compile(net.forward, backend="eager")
    return net


# torch.compile reads `.grad` of a graph's inputs. It silences the resulting warning, but pytest
# turns it on again.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(
    "compiled",
    [
        partial(torch.compile, backend="eager"),
        compiled_in_place,
        with_compiled_part,
        with_compiled_forward,
    ],
)
def test_code_without_taps_is_never_made(
    compiled: Callable[[Net], nn.Module], net: Net, images: Tensor
) -> None:
    """torch.compile would use it for the runs that read taps, too."""
    torch._dynamo.reset()
    tapped = TappedModel(compiled(net), PATHS)
    for step in range(4):
        outputs = tapped(images + step, read=step % 2 == 0)
        if step % 2 == 0:
            assert len(outputs.features) == 2
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                assert_taps(outputs, net, images + step)


@pytest.mark.usefixtures("process_group")
def test_data_parallel(net: Net, images: Tensor) -> None:
    del net.unused  # a gradient is expected for every parameter
    parallel = nn.parallel.DistributedDataParallel
    outside = parallel(TappedModel(net, PATHS))
    assert_taps(outside(images), net, images)
    inside = TappedModel(parallel(net), PATHS)
    assert_taps(inside(images), net, images)
    check_taps(parallel(net), PATHS)


def test_unknown_path_names_the_nearest(net: Net) -> None:
    with pytest.raises(UserError, match=r"jobs/a\.toml: unknown tap 'bloks\.0'.*'blocks\.0'"):
        check_taps(net, ("stem", "bloks.0"), where="jobs/a.toml")
    with pytest.raises(UserError, match="unknown tap"):
        TappedModel(net, ("",))


def test_a_tap_may_appear_once(net: Net) -> None:
    with pytest.raises(UserError, match="'stem' is named twice"):
        check_taps(net, ("stem", "stem"))


def test_a_block_that_does_not_run(net: Net, images: Tensor) -> None:
    with pytest.raises(UserError, match="'unused': this block did not run"):
        TappedModel(net, ("unused",))(images)


def test_a_block_that_returns_no_tensor(net: Net, images: Tensor) -> None:
    with pytest.raises(UserError, match="'pair': this block returns tuple"):
        TappedModel(net, ("pair",))(images)


QUADRANTS = [
    (rows, columns) for rows in (slice(2), slice(2, 4)) for columns in (slice(2), slice(2, 4))
]


def test_pool() -> None:
    image = torch.arange(24.0).view(1, 2, 3, 4)
    torch.testing.assert_close(pool(image), torch.tensor([[5.5, 17.5]]))
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    torch.testing.assert_close(pool(tokens), torch.tensor([[2.0, 4.0]]))
    torch.testing.assert_close(pool(tokens[0]), tokens[0])
    assert pool(image.bfloat16()).dtype == torch.float32
    with pytest.raises(UserError, match=r"shape \[3\]"):
        pool(torch.zeros(3))


def test_pool_on_a_grid() -> None:
    image = torch.arange(32.0).view(1, 2, 4, 4)
    halves = [image[..., rows, columns].mean(dim=(2, 3)) for rows, columns in QUADRANTS]
    torch.testing.assert_close(pool(image, 2), torch.stack(halves, dim=2).flatten(1))
    torch.testing.assert_close(pool(image, 9), image.flatten(1))  # no more cells than there are
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [5.0, 5.0], [7.0, 1.0]]])
    torch.testing.assert_close(pool(tokens, 2), tokens.transpose(1, 2).flatten(1))
    torch.testing.assert_close(pool(tokens[0], 2), tokens[0])
