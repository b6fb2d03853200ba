"""`train.precision = "auto"`: bf16 if the device computes it natively and faster, else fp32.

It is resolved on the machine of the training whenever a training is built. A run may continue on
another machine; a checkpoint holds fp32 weights, from which either precision can continue.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch

from krscale.config.training import Precision
from krscale.parallel import Workers, sum_over_workers

_WITHOUT_BF16 = {
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI",
}  # fmt: skip
"""Values of `ONEDNN_MAX_CPU_ISA` that keep oneDNN from using bf16 instructions."""


def computes_bf16(device: torch.device) -> bool:
    """Return whether a device has native instructions to multiply bf16 matrices.

    On x86 these are AMX and AVX512_BF16. torch reports bf16 as supported on every processor with
    AVX2, where a training step takes several times as long as in fp32 (docs/log.md, 2026-11-26).
    """
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    # Older versions of torch do not report it; fp32 works everywhere.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    native = capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)
    return bool(native) and not _is_onednn_limited()


def resolve_precision(wanted: Precision, workers: Workers) -> Literal["fp32", "bf16"]:
    """Return the precision of a training; `auto` is bf16 if every worker computes it natively.

    Workers on different machines must agree, as they exchange tensors of one type. All of them must
    call this together.
    """
    if wanted != "auto":
        return wanted
    native = torch.tensor(float(computes_bf16(workers.device)), device=workers.device)
    return "bf16" if float(sum_over_workers(native)) == workers.world_size else "fp32"


def _is_onednn_limited() -> bool:
    """Return whether the user keeps oneDNN, torch's CPU library for products, from using bf16."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    return limit.upper() in _WITHOUT_BF16
