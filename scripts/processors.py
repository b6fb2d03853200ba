"""Run the tests that compute with the instructions of other processors: `make test-processors`.

The libraries below torch choose their instructions when they are loaded; environment variables
restrict the choice. Settings that this processor cannot use are skipped, with the reason. Arguments
are passed to pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "tests/knowledge", "tests/methods", "tests/models", "tests/training", "tests/test_parallel.py",
    "tests/test_batch_norm.py",
    "tests/store/test_rows.py", "tests/store/test_features.py",
    "tests/data/augmentation/test_views.py", "tests/data/test_loader.py",
    "tests/data/test_joining.py",
    "tests/benchmarks/test_claims_tracing.py",
    "tests/search/studies/test_checkpoints.py",
)  # fmt: skip
"""Tests where rounding matters, and that wait for no cluster or server."""
VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR")


@dataclass(frozen=True)
class Setting:
    """One way to compute: its name, what it needs, and its environment variables."""

    name: str
    needs: str  # a key of `torch.cpu.get_capabilities()`
    environment: Mapping[str, str]


def _instructions(name: str, needs: str, *values: str) -> Setting:
    return Setting(name, needs, dict(zip(VARIABLES, values, strict=True)))


SETTINGS = (
    _instructions("SSE4.1", "sse4_1", "default", "SSE41", "COMPATIBLE"),
    _instructions("AVX2", "avx2", "avx2", "AVX2", "AVX2"),
    _instructions("AVX-512", "avx512_f", "avx512", "AVX512_CORE", "AVX512"),
    _instructions("AVX-512 with bf16", "avx512_bf16", "avx512", "AVX512_CORE_BF16", "AVX512"),
    _instructions("AMX", "amx_bf16", "avx512", "AVX512_CORE_AMX", "AVX512"),
    # Tests otherwise use one thread. Threads that spin while they wait would stall each other.
    Setting("2 threads", "", {"KRSCALE_TEST_THREADS": "2", "OMP_WAIT_POLICY": "passive"}),
)


def reason_to_skip(setting: Setting, capabilities: Mapping[str, Any], num_cpus: int) -> str:
    """Return why this processor cannot use a setting; empty if it can."""
    if setting.needs and not capabilities.get(setting.needs, False):
        return f"this processor has no {setting.needs}"
    threads = int(setting.environment.get("KRSCALE_TEST_THREADS", "1"))
    if num_cpus < threads:
        return f"this machine has {num_cpus} core, {threads} are needed"
    return ""


def main(arguments: list[str]) -> int:
    """Run the tests under every setting; return 1 if any fails, else 0."""
    import torch

    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    outcomes = {}
    for setting in SETTINGS:
        said = " ".join(f"{name}={value}" for name, value in setting.environment.items())
        print(f"== {setting.name}: {said}", flush=True)
        reason = reason_to_skip(setting, capabilities, os.cpu_count() or 1)
        outcomes[setting.name] = f"skipped: {reason}" if reason else _run(setting, arguments)
        print(f"== {setting.name}: {outcomes[setting.name]}\n", flush=True)
    print("\n".join(f"{name:<18} {outcome}" for name, outcome in outcomes.items()))
    return int(any(outcome.startswith("FAILED") for outcome in outcomes.values()))


def _run(setting: Setting, arguments: list[str]) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not cluster", *arguments, *TESTS]
    started = time.monotonic()
    done = subprocess.run(command, env={**kept, **setting.environment}, cwd=ROOT, check=False)  # noqa: S603
    outcome = "passed" if done.returncode == 0 else f"FAILED with exit code {done.returncode}"
    return f"{outcome} ({time.monotonic() - started:.0f} s)"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
