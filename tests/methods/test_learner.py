"""The learner joins student and method: compiled, data-parallel, and in gradient descent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from krscale.config import DistillConfig
from krscale.knowledge.taps import TapOutputs
from krscale.methods import Batch, Learner, Method, MethodContext, build_method

CONTEXT = MethodContext(
    3, 2, (1, 2), torch.tensor([0.4, 0.8]), ((8,),), ((), ()), None, torch.ones(2)
)


def make(name: str = "kr+kd", kind: type[nn.Sequential] = nn.Sequential, **changes: Any) -> Learner:
    torch.manual_seed(0)
    student = kind(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    settings = {**DistillConfig().model_dump(), "posterior": {"kd": 0.5}, **changes}
    return Learner(student, ("1",), build_method(name, CONTEXT, settings))


def make_batch(size: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 4, generator=generator)
    labels = images[:, :3].argmax(dim=-1)
    said = torch.stack([images[:, :3], 4 * images[:, :3]], dim=1)
    return Batch(images, labels, torch.arange(size), said, size)


@pytest.mark.parametrize("name", ["plain", "kd", "kr"])
def test_descent_learns(name: str) -> None:
    learner, batch = make(name), make_batch(64)
    optimiser = torch.optim.SGD(learner.parameters(), lr=0.1, momentum=0.9)
    for _ in range(80):
        optimiser.zero_grad()
        torch.stack(list(learner(batch).terms.values())).sum(dim=0).mean().backward()
        optimiser.step()
    accuracy = (learner(batch).logits.argmax(dim=-1) == batch.labels).float().mean()
    assert accuracy > 0.9


def gradients(learner: nn.Module, batch: Batch) -> list[torch.Tensor]:
    learner.zero_grad()
    torch.stack(list(learner(batch).terms.values())).sum().backward()
    return [p.grad.clone() for p in learner.parameters() if p.grad is not None]


class Witness(Method):
    """Records whether autocast is on, and the dtypes of the student's outputs."""

    def forward(self, student: TapOutputs, batch: Batch) -> dict[str, Tensor]:
        self.autocast = torch.is_autocast_enabled("cpu")
        self.dtypes = (student.logits.dtype, student.features[0].dtype)
        return {"ce": student.logits.float().sum(dim=-1)}


def test_losses_are_outside_autocast_and_the_student_within() -> None:
    witness = Witness()
    learner = Learner(make().student, ("1",), witness)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        learner(make_batch())
    assert not witness.autocast
    assert witness.dtypes == (torch.bfloat16, torch.bfloat16)


# torch.compile reads `.grad` of a graph's inputs. It silences the resulting warning, but pytest
# turns it on again.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_equals_eager() -> None:
    torch._dynamo.reset()
    learner, compiled = make(), make()
    compiled.compile(backend="eager")
    for size in (16, 16, 5, 0):
        batch = make_batch(size)
        expected, got = gradients(learner, batch), gradients(compiled, batch)
        assert len(got) == 6
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(
            compiled(batch).diagnostics["kr/active_classes"],
            learner(batch).diagnostics["kr/active_classes"],
        )


class Own(nn.Sequential):
    """A student with a `forward` of its own, whose code torch.compile keeps for all of its kind."""

    def forward(self, images: Tensor) -> Tensor:
        """Run every layer."""
        for layer in self:
            images = layer(images)
        return images


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("kind", [nn.Sequential, Own])
def test_compiled_equals_eager_in_the_steps_between(kind: type[nn.Sequential]) -> None:
    """Heads are taught in every second step, and another training of the same kind goes first."""
    torch._dynamo.reset()
    earlier, learner, compiled = (make(kind=kind, auxiliary_interval=2) for _ in range(3))
    earlier.compile(backend="eager")
    for step in range(3):
        earlier.method.begin_step(step)
        gradients(earlier, make_batch(16))
    compiled.compile(backend="eager")
    for step in range(6):
        batch = make_batch(16)
        for either in (learner, compiled):
            either.method.begin_step(step)
        expected, got = gradients(learner, batch), gradients(compiled, batch)
        assert len(got) == (6 if step % 2 == 0 else 4)
        torch.testing.assert_close(got, expected)


def test_blocks_are_read_where_they_are_needed() -> None:
    learner = make(auxiliary_interval=2)
    called: list[int] = []
    for step in range(4):
        learner.method.begin_step(step)
        before = len(learner.student[1]._forward_hooks)
        handle = learner.student[2].register_forward_pre_hook(
            lambda *given, step=step: called.append(len(learner.student[1]._forward_hooks))
        )
        learner(make_batch())
        handle.remove()
        assert before == 0
    assert called == [1, 0, 1, 0]


@pytest.mark.usefixtures("process_group")
def test_data_parallel_equals_alone() -> None:
    parallel = nn.parallel.DistributedDataParallel(make())
    for size in (16, 0, 16):
        torch.testing.assert_close(
            gradients(parallel, make_batch(size)), gradients(make(), make_batch(size))
        )


@pytest.mark.usefixtures("process_group")
def test_data_parallel_equals_alone_in_the_steps_between() -> None:
    alone = make(auxiliary_interval=2)
    parallel = nn.parallel.DistributedDataParallel(make(auxiliary_interval=2))
    for step in range(4):
        alone.method.begin_step(step)
        parallel.module.method.begin_step(step)
        got = gradients(parallel, make_batch())
        expected = gradients(alone, make_batch())
        assert len(got) == 6
        torch.testing.assert_close([g for g in got if g.any()], [g for g in expected if g.any()])
