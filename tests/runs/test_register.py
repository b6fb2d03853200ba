"""What is sent to MLflow's registry about a student."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from krscale.config import load
from krscale.export import StudentCard
from krscale.report import Candidate, Choice, CurveSize, MethodResult
from krscale.runs import register as module
from krscale.runs.deliver import Delivery
from krscale.runs.register import register, registration

CARD = StudentCard(
    "resnet", 4, {}, 1_000, 20_000, ("a", "b"), (1, 8, 8), (0.5,), (0.5,),
    {"val": 0.61849, "test": 0.5871},
    {"run": "tiny", "seed": 1001, "trained_on": ["train"], "commit": "c",
     "data": {"fingerprint": "f"}},
)  # fmt: skip


def delivery(card: StudentCard, *files: Any) -> Delivery:
    """Return a delivery of the better of two seeds, whose mean on validation is 52.2 %."""
    result = MethodResult.over_seeds(
        seeds=(1000, 1001), val_accuracies=(0.42551, 0.61849), test_accuracies=(0.4, 0.5871),
        num_trials=2, num_pruned=0, num_failed=0, best={},
    )  # fmt: skip
    size = CurveSize(
        capacity="1/64", width=4, num_parameters=1_000, flops=20_000, latency_ms=0.25,
        methods={"kr": result},
    )  # fmt: skip
    choice = Choice(Candidate(size, "kr", result), None, ())
    return Delivery(choice, card, Path("export/ship"), files)


def description(card: StudentCard) -> str:
    wanted = registration("krscale", delivery(card), "f00d")
    assert wanted.tags["krscale.seed"] == "1001"
    return wanted.description


def test_a_description_is_of_the_weights_and_not_of_their_methods_mean() -> None:
    assert description(CARD) == (
        "kr at 1/64, seed 1001: 1,000 parameters, 20,000 FLOPs, 0.25 ms; 61.8 % on validation. "
        "Takes images in 0..1, returns logits."
    )


def test_weights_that_learned_from_validation_are_not_judged_by_it() -> None:
    origin = {**CARD.provenance, "trained_on": ["train", "val"]}
    refitted = replace(CARD, accuracy={"val": None, "test": 0.5871}, provenance=origin)
    assert "0.25 ms; trained on train and validation; 58.7 % on test." in description(refitted)
    untested = replace(refitted, accuracy={"val": None, "test": None})
    assert "0.25 ms; trained on train and validation. Takes" in description(untested)


def test_what_waits_for_mlflow_is_not_replaced_by_the_next_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = MagicMock(num_refused=0)
    tracker.close.return_value = 1  # MLflow is unreachable
    monkeypatch.setattr(module, "reopen", lambda *_, **__: tracker)
    monkeypatch.setattr(module, "read_experiment", lambda _: load(None, []))
    monkeypatch.setattr(module, "last_start", lambda _: None)
    monkeypatch.setattr(module, "save_onnx_model", lambda *_: None)
    for digest in ("a" * 64, "b" * 64, "a" * 64):
        onnx = SimpleNamespace(format="onnx", file="student.onnx", sha256=digest)
        assert "waiting for MLflow" in register(tmp_path, delivery(CARD, onnx), "", print)
    first, second, again = (call.args[1] for call in tracker.register_model.call_args_list)
    assert first == again != second
    assert first.parent == second.parent == tmp_path / "registered"
