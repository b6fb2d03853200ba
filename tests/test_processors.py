"""`make test-processors`: what is skipped, and that a failure is not lost."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def processors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("processors", ROOT / "scripts" / "processors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "processors", module)
    spec.loader.exec_module(module)
    return module


def test_the_tests_it_names_are_there(processors: ModuleType) -> None:
    assert [path for path in processors.TESTS if not (ROOT / path).exists()] == []


def test_it_knows_the_names_torch_gives_instructions(processors: ModuleType) -> None:
    import torch

    known = torch.cpu.get_capabilities()
    if known["architecture"] != "x86_64":
        pytest.skip("other processors have other instructions")
    assert {setting.needs for setting in processors.SETTINGS} <= {*known, ""}


def test_what_the_processor_cannot_do_is_skipped_with_the_reason(processors: ModuleType) -> None:
    old = {"sse4_1": True, "avx2": True, "avx512_f": False}
    reasons = {s.name: processors.reason_to_skip(s, old, 1) for s in processors.SETTINGS}
    assert reasons["SSE4.1"] == reasons["AVX2"] == ""
    assert reasons["AVX-512"] == "this processor has no avx512_f"
    assert reasons["AMX"] == "this processor has no amx_bf16"
    assert reasons["2 threads"] == "this machine has 1 core, 2 are needed"


@pytest.mark.parametrize(("failing", "code"), [("", 0), ("AVX2", 1)])
def test_one_failure_fails_the_whole(
    processors: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failing: str,
    code: int,
) -> None:
    fake = "import os, sys; sys.exit(int(os.environ.get('ATEN_CPU_CAPABILITY') == sys.argv[1]))"
    run = processors.subprocess.run

    def pytest_of(command: list[str], **options: object) -> object:
        assert command[1:3] == ["-m", "pytest"]
        return run([sys.executable, "-c", fake, failing.lower()], **options)

    monkeypatch.setattr(processors.subprocess, "run", pytest_of)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")  # the caller's own value must not leak
    everything = {setting.needs: True for setting in processors.SETTINGS}
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: everything, raising=False)
    monkeypatch.setattr(processors.os, "cpu_count", lambda: 2)
    assert processors.main([]) == code
    lines = capsys.readouterr().out.splitlines()
    summary = lines[-len(processors.SETTINGS) :]
    assert [line.split("  ")[0].strip() for line in summary] == [
        setting.name for setting in processors.SETTINGS
    ]
    assert [line for line in summary if "FAILED" in line] == (
        [line for line in summary if line.startswith(f"{failing} ")] if failing else []
    )
