"""What a KRLoss refuses or warns of in a loop: outputs of other taps, rows that are not images."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from foreign_networks import LikeResNet
from torch import Tensor, nn

from krscale import KRLoss
from krscale.errors import UserError

IMAGES = torch.randn(60, 1, 12, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 3
IMAGES[torch.arange(60), 0, 4 * LABELS] += 4.0  # a bright line, so that every block tells classes
BATCH = IMAGES[:8], LABELS[:8]


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.manual_seed(0)
    return LikeResNet(6)


def make(teacher: nn.Module, student: nn.Module, **more: Any) -> KRLoss:
    torch.manual_seed(2)
    loader = [(IMAGES, LABELS)]
    chosen = {"granularity": 3, "allow_poor_teacher": True, **more}
    return KRLoss.from_networks(teacher, student, loader, **chosen)


def test_outputs_that_were_read_at_other_taps_are_refused(teacher: nn.Module) -> None:
    """One forward pass of a student serves two teachers if both losses read the same taps.

    Otherwise blocks of equal shape would be confused, and no number would show it.
    """
    student = LikeResNet(3).eval()
    first = make(teacher, student, student_taps=("layer1.0", "layer2.0"))
    second = make(teacher, student, student_taps=("layer1.1", "layer2.0"))
    again = make(LikeResNet(4), student, student_taps=("layer1.0", "layer2.0"), ce_weight=0.0)
    headless = make(teacher, student, granularity=1)
    outputs = first.student(BATCH[0])
    assert outputs.features[0].shape == second.student(BATCH[0]).features[0].shape
    torch.testing.assert_close(
        again.loss(outputs, again.teacher(BATCH[0]), BATCH[1]), again(*BATCH)
    )
    torch.testing.assert_close(
        headless.loss(outputs, headless.teacher(BATCH[0]), BATCH[1]), headless(*BATCH)
    )
    for found, others in ((outputs, r"layer1\.0, layer2\.0"), (headless.student(BATCH[0]), "none")):
        with pytest.raises(
            UserError,
            match=rf"of other taps \({others}\).*\(layer1\.1, layer2\.0\).*own kr\.student\(images",
        ):
            second.loss(found, second.teacher(BATCH[0]), BATCH[1])


class Both(LikeResNet):
    """Learns from every image and its mirror image, in training only."""

    def forward(self, x: Tensor) -> Any:
        if not self.training:
            return super().forward(x)
        first, second = super().forward(torch.cat([x, x.flip(3)])).chunk(2)
        return (first + second) / 2


def test_a_tap_gives_one_row_for_each_image(teacher: nn.Module) -> None:
    student = Both(3).eval()
    kr = make(teacher, student)
    assert kr(*BATCH).isfinite()
    student.train()
    with pytest.raises(UserError, match=r"tap 'layer\S+ gives 16 rows for 8 images"):
        kr(*BATCH)


class TokensFirst(nn.Module):
    """Tokens are in the first dimension, the default of torch's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, stride=3)
        layers = (nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0) for _ in range(2))
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).permute(2, 0, 1)
        for layer in self.layers:
            tokens = layer(tokens)
        logits: Tensor = self.head(tokens.mean(dim=0))
        return logits


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_a_tap_whose_first_dimension_is_another_is_refused(who: str, teacher: nn.Module) -> None:
    """With as many tokens as images in a batch, each token would be taken for an image."""
    networks = {"teacher": teacher, "student": LikeResNet(3), who: TokensFirst()}
    taps = {f"{who}_taps": ("layers.0", "layers.1")}
    with pytest.raises(UserError, match=rf"{who}\.taps: 'layers\.0' gives \[16, 2, 4\] for 2 im"):
        make(**networks, **taps)


def initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def test_what_a_loop_does_to_all_layers_leaves_the_probes(teacher: nn.Module) -> None:
    """For example a module that holds student and loss, and finally initialises all layers."""
    student = LikeResNet(3)
    kr = make(teacher, student)
    whole = nn.ModuleDict({"student": student, "kr": kr})
    before, heads = kr.tap_logits(BATCH[0]), [head.clone() for head in kr.parameters()]
    names = list(kr.state_dict())
    whole.apply(initialise)
    torch.testing.assert_close(kr.tap_logits(BATCH[0]), before, rtol=0.0, atol=0.0)
    assert not torch.equal(heads[0], next(kr.parameters()))  # heads are trained, so they may change
    assert list(kr.state_dict()) == names


def test_heads_that_no_group_teaches_need_not_move(
    teacher: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    """Half way through a coarsening, one of three heads is still taught."""
    kr = make(teacher, LikeResNet(3), granularity=4, auxiliary_schedule="coarsening")
    kr.begin_epoch(0.5)
    assert (kr.method.group_weights[:-1] > 0.0).tolist() == [False, True, False]
    optimiser = torch.optim.SGD(kr.parameters(), lr=0.01)
    for _ in range(101):
        kr(*BATCH).backward()
        optimiser.step()
    assert caplog.messages == []


def test_what_is_checked_is_read_by_the_compiler(
    teacher: nn.Module, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("torch._dynamo"), "propagate", True)
    kr = make(teacher, LikeResNet(3), auxiliary_schedule="constant", sparsity_schedule="constant")
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(kr, backend="eager")(*BATCH), kr(*BATCH))
    assert "incorrect arg" not in caplog.text
