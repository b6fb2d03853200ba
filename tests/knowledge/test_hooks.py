"""A hook of one thread is not called for what another thread runs."""

from __future__ import annotations

import logging
from threading import Barrier, Thread

import pytest
import torch
from torch import Tensor, nn

from krscale.knowledge.hooks import in_this_thread, is_compiled
from krscale.knowledge.taps import TapOutputs, run_tapped


class Together(nn.Module):
    """A network that makes two threads wait for each other before and after its block."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(1, 1)
        self.both = Barrier(2, timeout=30)

    def forward(self, images: Tensor) -> Tensor:
        self.both.wait()
        features: Tensor = self.block(images)
        self.both.wait()
        return features


def in_another_thread(call: object, *arguments: object) -> None:
    thread = Thread(target=call, args=arguments)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_it_is_called_in_its_own_thread_alone() -> None:
    network, seen = nn.Linear(1, 1), list[Tensor]()
    network.register_forward_hook(in_this_thread(lambda *given: seen.append(given[-1])))
    in_another_thread(network, torch.zeros(1))
    assert not seen
    network(torch.zeros(1))
    assert len(seen) == 1


def test_what_it_returns_takes_the_place_of_the_output() -> None:
    network = nn.Linear(1, 1)
    network.register_forward_hook(in_this_thread(lambda *given: torch.tensor([7.0])))
    assert network(torch.zeros(1)).tolist() == [7.0]


def test_two_threads_read_each_their_own_images() -> None:
    network, found = Together(), dict[int, TapOutputs]()

    def run(number: int) -> None:
        images = torch.full((number, 1), float(number))
        found[number] = run_tapped(network, ("block",), images)

    threads = [Thread(target=run, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, outputs in found.items():
        assert len(outputs.logits) == number
        assert torch.equal(outputs.features[0], outputs.logits)
    assert len(found) == 2


def test_what_is_compiled_in_one_thread_serves_the_others() -> None:
    network, images, found = nn.Linear(1, 1), torch.ones(2, 1), list[TapOutputs]()
    compiled = torch.compile(nn.Sequential(network), backend="eager")

    def run() -> None:
        found.append(run_tapped(compiled, ("0",), images))

    run()
    with torch.compiler.set_stance("fail_on_recompile"):
        in_another_thread(run)
    assert len(found) == 2
    assert torch.equal(found[1].features[0], network(images))


class Left(nn.Linear):
    """A layer that is left out of what is compiled."""

    @torch.compiler.disable
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input)


class Compiled(nn.Linear):
    @torch.compile(backend="eager")
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input)


@pytest.mark.parametrize(
    ("kind", "compiled"), [(nn.Linear, False), (Left, False), (Compiled, True)]
)
def test_what_counts_as_compiled(kind: type[nn.Linear], compiled: bool) -> None:
    network = nn.Sequential(kind(1, 1))
    assert is_compiled(network) == compiled
    network[0].compile(backend="eager")
    assert is_compiled(network)


def test_hooks_are_not_compiled_one_by_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("torch._dynamo"), "propagate", True)
    network = nn.Sequential(*(nn.Linear(1, 1) for _ in range(12)))
    paths = tuple(map(str, range(11)))
    run = torch.compile(lambda images: run_tapped(network, paths, images), backend="eager")
    with torch.no_grad():
        assert len(run(torch.ones(2, 1)).features) == len(paths)
    assert "recompile_limit" not in caplog.text
