"""Every example of docs/own-loop.md is run, in order, on a small teacher and student."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_networks import LikeResNet
from running import ROOT
from torch.utils.data import DataLoader, TensorDataset

DOCUMENT = ROOT / "docs" / "own-loop.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.S)
LIBRARIES = ("lightning", "accelerate")


def given(tmp_path: Path) -> dict[str, Any]:
    """Return what the page assumes that its reader has."""
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    images = torch.randn(60, 1, 12, 12) * 0.3 + labels.view(-1, 1, 1, 1)
    teacher, student = LikeResNet(6), LikeResNet(2)
    optimiser = torch.optim.Adam(teacher.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(teacher(images), labels).backward()
        optimiser.step()
    optimiser.zero_grad()
    loader = DataLoader(TensorDataset(images, labels), batch_size=30)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return {
        "teacher": teacher,
        "student": student,
        "train_loader": loader,
        "val_loader": DataLoader(TensorDataset(images[30:], labels[30:]), batch_size=15),
        "images": images[:30],
        "labels": labels[:30],
        "path": tmp_path / "kr.pt",
        "trainer_options": {"accelerator": "cpu", "enable_model_summary": False, **quiet},
        "accelerator_options": {"cpu": True},
    }


def run(block: str, names: dict[str, Any]) -> None:
    exec(compile(block, str(DOCUMENT), "exec"), names)


def test_all_kinds_of_examples_are_found() -> None:
    assert len(BLOCKS) >= 10
    for library in (*LIBRARIES, "torch.compile", "# distributed", "from_state"):
        assert any(library in block for block in BLOCKS), library


def test_examples_that_need_torch_alone(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = []
    # The example's compiler would take half a minute; tests/kr tests compiled networks.
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    names = given(tmp_path)
    for block in BLOCKS:
        if "# distributed" not in block and not any(name in block for name in LIBRARIES):
            run(block, names)
    assert len(compiled) == 1
    out = capsys.readouterr().out
    assert out.count("'kr':") == 2
    assert "of validation right after 3 epochs" in out
    assert 0.0 <= float(names["accuracy"]) <= 1.0
    assert names["loss"].requires_grad
    assert names["combined"].shape == ()
    assert caplog.text == "", "the examples say how far a training is"


def test_the_example_of_several_workers_on_one(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        names = given(tmp_path)
        run(f"import krscale, torch\n{next(b for b in BLOCKS if '# distributed' in b)}", names)
        student = names["student"]
        assert all(parameter.grad is not None for parameter in student.parameters())
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # those of other libraries
@pytest.mark.parametrize("library", LIBRARIES)
def test_examples_of_other_libraries(library: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed; krscale does not need it")
    names = {**given(tmp_path), "num_epochs": 2}
    before = [parameter.clone() for parameter in names["student"].parameters()]
    student = names["student"]
    block = next(b for b in BLOCKS if re.search(rf"^(import|from) {library}\b", b, flags=re.M))
    run(f"import krscale, torch\n{block}", names)
    changed = zip(before, student.parameters(), strict=True)
    assert all(not torch.equal(a, b.cpu()) for a, b in changed)
