"""`make gpu-check`, as far as it runs without a GPU."""

from __future__ import annotations

import gpu_check
import pytest
import torch
from documents import ROOT
from drilling import Drill
from parts.gpu import gpu_table


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    assert "sees no GPU" in capsys.readouterr().err


def test_the_page_says_what_was_measured_or_that_nothing_was() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    if not gpu_check.RESULT.exists():
        assert gpu_table(None) in page
    found = {
        "commit": "0" * 40,
        "machine": "a card",
        "numerics": {"kd fp32": {"error": 1e-6, "bound": 1e-4}},
        "speed": {"bf16": {"samples_per_second": 12000, "share_of_peak": 0.1}},
        "together": {"1": 1.0, "4": 2.5},
    }
    table = gpu_table(found)
    assert "| bf16 | samples_per_second 12,000, share_of_peak 0.1 |" in table
    assert "| 4 | 2.5 |" in table


@pytest.mark.drill
@pytest.mark.timeout(900)
def test_the_program_runs_on_the_cpu(drill: Drill) -> None:
    drill.must_hold("every part of gpu_check runs at its smallest sizes")
    drill.injected("gpu_check on the CPU", kind="load")
    assert gpu_check.main(["--device", "cpu", "--tiny"]) == 0
    drill.held("all parts ran, within their bounds")


@pytest.mark.gpu
def test_the_program_runs_on_a_gpu() -> None:
    assert gpu_check.main(["--tiny"]) == 0
