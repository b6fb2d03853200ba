"""`make gpu-check`, as far as it runs without a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import gpu_check
import pytest
import torch
from documents import ROOT
from drilling import Drill
from parts import gpu_at_size, gpu_processes
from parts.gpu import Sizes, gpu_table, known_peak, kr_setting
from torch import nn

from krscale.files import read_json
from krscale.models.capacity import num_parameters
from krscale.setup.gpu_memory import GpuMemory
from krscale.training.loop import Training


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    assert "sees no GPU" in capsys.readouterr().err


def test_the_page_says_what_was_measured_or_that_nothing_was() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    result = read_json(gpu_check.RESULT) if gpu_check.RESULT.exists() else None
    assert gpu_table(result) in page
    assert "no GPU was at hand" in gpu_table(None)
    found = {
        "commit": "0" * 40,
        "machine": "a card",
        "numerics": {
            "kd fp32": {"error": 1e-6, "bound": 1e-4}, "dkd fp32": {"error": 2e-4, "bound": 1e-4}
        },
        "speed": {"bf16": {"samples_per_second": 12000, "share_of_peak": 0.1}},
        "memory": {
            "probed_mib": 900, "trial_mib": 870, "trial_over_probe": 0.967, "of_mib": 16000,
            "trials_per_gpu": 15,
        },
        "together": {
            "1": {"samples_per_second": 12000, "over_one": 1.0, "peak_mib_each": 300},
            "4": {"samples_per_second": 30000, "over_one": 2.5, "peak_mib_each": 300},
        },
        "left_out": ["more"],
    }  # fmt: skip
    table = gpu_table(found)
    assert "| kd fp32 | 1.0e-06 | 1e-04 |\n| dkd fp32 | 2.0e-04 (beyond) | 1e-04 |" in table
    assert "| bf16 | samples_per_second 12,000, share_of_peak 0.1 |" in table
    assert "| 4 | 30,000 | 2.5 | 300 |" in table
    assert "found 900 MiB for a trial, which then took 870 (ratio 0.967; goal: at most 1)" in table
    assert table.endswith("Not measured, as the time was up: more.")


CPU = torch.device("cpu")


class Open:
    """A barrier at which nobody waits."""

    def wait(self, timeout: float | None = None) -> int:
        assert timeout
        return 0


def run_here(work: Callable[..., Any], number: int, *arguments: Any) -> list[Any]:
    """Stand in for `run_processes`, in this process."""
    return [work(Open(), *arguments) for _ in range(number)]


def test_students_at_once_are_compared_with_one() -> None:
    rates = iter([100.0, 60.0, 50.0])
    numbers: list[int] = []

    def run(work: Callable[..., Any], number: int, *arguments: Any) -> list[Any]:
        numbers.append(number)
        students = run_here(work, number, *arguments)
        assert all(student.samples_per_second > 0 for student in students)
        return [student._replace(samples_per_second=next(rates)) for student in students]

    found = gpu_processes.together(CPU, Sizes.tiny(), run)
    assert numbers == [1, 2]
    assert found["2"] == {"samples_per_second": 110, "over_one": 1.1, "peak_mib_each": 0}


def test_the_probe_is_compared_with_a_whole_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[int] = []
    run_epoch = Training.run_epoch

    def counted(training: Training) -> dict[str, float]:
        metrics = run_epoch(training)
        if training.learner.method.needs_teacher:
            epochs.append(training.epoch)
        return metrics

    monkeypatch.setattr(Training, "run_epoch", counted)

    def read(device: torch.device) -> GpuMemory:
        return GpuMemory("a GPU", 16 << 30, (1 << 30) - (len(epochs) << 20))

    found = gpu_processes.memory(CPU, Sizes.tiny(), run_here, read)
    assert epochs == [1, 2]
    assert (found["probed_mib"], found["trial_mib"]) == (1024, 1022)
    assert found["trial_over_probe"] == 0.998
    assert found["trials_per_gpu"] == min(14, os.cpu_count() or 1)


def test_no_part_begins_when_the_time_is_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    began: list[str] = []
    parts = {name: partial(began.append, name) for name in ("one", "two")}
    monkeypatch.setattr(gpu_check, "all_parts", lambda *_: parts)
    assert gpu_check.main(["--device", "cpu", "--tiny", "--minutes", "-1"]) == 0
    assert began == []


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA L40S", 362.0),
        ("NVIDIA A100-SXM4-40GB", 312.0), ("NVIDIA RTX A1000", 0.0), ("NVIDIA L40", 0.0),
    ],
)  # fmt: skip
def test_peaks_are_of_the_card_that_is_named(name: str, peak: float) -> None:
    assert known_peak(name) == peak


def test_the_step_that_is_timed_teaches_heads() -> None:
    kr, *_ = kr_setting(torch.device("cpu"), Sizes.tiny())
    assert kr.method.teaches_heads
    assert (kr.method.group_weights > 0.0).all()


def test_each_network_is_compared_with_its_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[tuple[str, bool]] = []

    def seconds(network: nn.Module, *others: Any, training: bool) -> float:
        timed.append((f"{num_parameters(network) / 1e6:.2f} M", training))
        return 1e-6

    monkeypatch.setattr(gpu_at_size, "_image_seconds", seconds)
    found = gpu_at_size.against_paper(torch.device("cpu"), Sizes.tiny())
    titles = [f"{size}, {'step' if training else 'forward'}" for size, training in timed]
    assert [title.partition(" of ")[2] for title in found] == titles
    assert len(found) > 3
    assert all(row["us"] == 1.0 and row["over_paper"] > 0.0 for row in found.values())


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
