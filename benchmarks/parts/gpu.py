"""The parts of `benchmarks/gpu_check.py`, on synthetic images and krscale's own networks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from krscale import losses
from krscale.kr import KRLoss
from krscale.models.capacity import count_flops
from krscale.models.resnet import resnet
from parts.measuring import clock_for
from parts.setting import teach_heads

NUM_CLASSES = 10
FP32_BOUND, BF16_BOUND = 1e-4, 5e-2
"""Largest relative error of a loss against the CPU."""
KR_STEPS = (("fp32", False, 2.0**-20), ("fp32, convolutions in TF32", True, 2.0**-11))
"""Name, whether convolutions may use TF32 (torch allows it by default), and the size of rounding
errors: of one rounding in TF32, and of the several roundings of a convolution's sum in fp32."""
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 80GB HBM3": 989.0,
    "A100-": 312.0,
    "A100 ": 312.0,
    "L40S": 362.0,
    "L4 ": 121.0,
}
"""Dense bf16 peaks from the data sheets of cards, by a part of torch's name for the card."""


@dataclass(frozen=True)
class Sizes:
    """Amount of computation: images of CIFAR's size, or the smallest that run."""

    side: int = 32
    batch: int = 256
    teacher: int = 64
    student: int = 32
    steps: int = 30
    together: tuple[int, ...] = (1, 4, 16)
    seconds: float = 8.0

    @classmethod
    def tiny(cls) -> Sizes:
        """Return sizes that take a second on one core."""
        return cls(side=8, batch=20, teacher=4, student=4, steps=1, together=(1, 2), seconds=0.0)


Step = Callable[[], Tensor]


def all_parts(device: torch.device, sizes: Sizes, peak: float) -> dict[str, Callable[[], Any]]:
    """Return every part by name.

    Args:
        device: Where to measure.
        sizes: Of networks and batches.
        peak: TFLOP/s of the card in bf16, or 0 if it is not known.
    """
    return {
        "numerics": partial(numerics, device, sizes),
        "speed": partial(speed, device, sizes, peak),
    }


def known_peak(name: str) -> float:
    """Return the peak of a card in TFLOP/s, by torch's name for it; 0 if it is not known.

    Example:
        >>> known_peak("NVIDIA H100 80GB HBM3"), known_peak("NVIDIA L4"), known_peak("Voodoo")
        (989.0, 121.0, 0.0)
    """
    words = f"{name} "
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in words), 0.0)


def numerics(device: torch.device, sizes: Sizes) -> dict[str, dict[str, float]]:
    """Return the relative errors of losses and of a KR step's gradient against the CPU's.

    The CPU gets its inputs in float64; a loss that computes in fp32 does so there as well.
    """
    found = {}
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, sizes.batch, 100, generator=generator, dtype=torch.float64)
    labels = torch.arange(sizes.batch) % 100
    for name in ("kd", "dkd", "dist"):
        loss = partial(_logit_loss, getattr(losses, name))
        right = loss(student, teacher, labels)
        for kind, bound in (("fp32", FP32_BOUND), ("bf16", BF16_BOUND)):
            dtype = torch.float32 if kind == "fp32" else torch.bfloat16
            inputs = (t.to(device, dtype) for t in (student, teacher))
            found[f"{name} {kind}"] = _row(loss(*inputs, labels.to(device)), right, bound)
    kr, net, images, of_images = kr_setting(torch.device("cpu"), sizes)

    def gradient(dtype: torch.dtype, noise: float, where: torch.device | str = "cpu") -> Tensor:
        moved = images * (1.0 + noise * torch.randn(images.shape, generator=generator))
        return _gradient(copy.deepcopy(kr), net, moved, of_images, dtype, where)

    right = gradient(torch.float64, 0.0)
    for name, tf32, rounding in KR_STEPS:
        # The gradient may differ by as much as when only the images are rounded like this.
        moved = _row(gradient(torch.float64, rounding), right, 0.0)["error"]
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
            mine = gradient(torch.float32, 0.0, device)
        found[f"KR step {name}"] = _row(mine, right, max(FP32_BOUND, float(f"{3 * moved:.2g}")))
    return found


def kr_setting(device: torch.device, sizes: Sizes) -> tuple[KRLoss, nn.Module, Tensor, Tensor]:
    """Return the KR loss, its student and a batch on a device; copies of those made first."""
    return copy.deepcopy(_made(device, sizes))  # copied together: the loss keeps its student


@lru_cache
def _made(device: torch.device, sizes: Sizes) -> tuple[KRLoss, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    shape = (sizes.batch, 3, sizes.side, sizes.side)
    images, labels = torch.randn(shape), torch.arange(sizes.batch) % NUM_CLASSES
    teacher, student = (
        resnet(NUM_CLASSES, 3, width, num_blocks=1).to(device)
        for width in (sizes.teacher, sizes.student)
    )
    images, labels = images.to(device), labels.to(device)
    kr = KRLoss.from_networks(
        teacher, student, [(images, labels)], granularity="stage", allow_poor_teacher=True
    )
    teach_heads(kr.method)
    return kr, student, images, labels


def make_step(device: torch.device, sizes: Sizes, precision: str, *, compiled: bool) -> Step:
    """Return one training step of a student under KR."""
    kr, student, images, labels = kr_setting(device, sizes)
    optimiser = torch.optim.SGD([*student.parameters(), *kr.parameters()], lr=1e-3, momentum=0.9)
    loss_of = torch.compile(kr) if compiled else kr

    def step() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss: Tensor = loss_of(images, labels)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step


def speed(device: torch.device, sizes: Sizes, peak: float) -> dict[str, dict[str, Any]]:
    """Return samples/s, peak memory and share of the card's peak, by precision and compiling.

    Three forwards of the student and one of the teacher count as a step's FLOPs.
    """
    shape = (3, sizes.side, sizes.side)
    teacher, student = (
        count_flops(resnet(NUM_CLASSES, 3, width, num_blocks=1), shape)
        for width in (sizes.teacher, sizes.student)
    )
    found = {}
    for name in ("fp32", "bf16", *(("bf16 compiled",) if device.type == "cuda" else ())):
        step = make_step(device, sizes, name.split()[0], compiled="compiled" in name)
        step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = _seconds(step, sizes.steps, device)
        row: dict[str, Any] = {"samples_per_second": round(sizes.batch / seconds)}
        flops = (3 * student + teacher) * sizes.batch / seconds / 1e12
        row["tflops"] = round(flops, 3)
        if peak:
            row["share_of_peak"] = round(flops / peak, 3)
        if device.type == "cuda":
            row["peak_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
        found[name] = row
    return found


def gpu_table(result: Mapping[str, Any] | None) -> str:
    """Return the section of the page; "not measured" if there is no result."""
    if result is None:
        return "Not measured: no GPU was at hand. `python benchmarks/gpu_check.py` measures."
    lines = [f"`python benchmarks/gpu_check.py` at `{result['commit'][:12]}`: {result['machine']}."]
    lines += [
        "",
        "| against the CPU, inputs in float64 | relative error | bound |",
        "|---|---|---|",
    ]
    for name, row in result["numerics"].items():
        beyond = " (beyond)" if row["error"] > row["bound"] else ""
        lines.append(f"| {name} | {row['error']:.1e}{beyond} | {row['bound']:.0e} |")
    lines += ["", "| KR step | measured |", "|---|---|"]
    for name, row in result["speed"].items():
        lines.append(f"| {name} | {', '.join(f'{k} {v:,}' for k, v in row.items())} |")
    lines += _cost_lines(result.get("cost", []))
    if "cost" in result and not result.get("heads_teach"):
        lines += ["", "In these steps of KR no head was taught; with heads they take longer."]
    lines += _paper_lines(result.get("against_paper", {}))
    if "memory" in result:
        found = result["memory"]
        lines += [
            "",
            f"Memory: the probe of `search.gpus_per_trial` found {found['probed_mib']:,} MiB for a "
            f"trial, which then took {found['trial_mib']:,} (ratio {found['trial_over_probe']}; "
            f"goal: at most 1). {found['trials_per_gpu']} trials would share this GPU.",
        ]
    if "together" in result:
        lines += [
            "",
            "| students, each a process | samples/s | over one | MiB of each |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {number} | {row['samples_per_second']:,} | {row['over_one']} "
            f"| {row['peak_mib_each']:,} |"
            for number, row in result["together"].items()
        ]
    if left_out := result.get("left_out"):
        lines += ["", f"Not measured, as the time was up: {', '.join(left_out)}."]
    return "\n".join(lines)


def _cost_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    return [
        "",
        "| student | plain step, ms | KR / plain | KD / plain | KR, teacher / store |",
        "|---|---|---|---|---|",
        *(
            f"| {row['student']} | {row['plain_ms']} | {row['kr_store_over_plain']} "
            f"| {row['kd_store_over_plain']} | {row['online_kr_over_kr_store']} |"
            for row in rows
        ),
    ]


def _paper_lines(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    return [
        "",
        "| `jobs/imagenet_resnet.toml`, bf16 | µs an image | paper | over it | bound there |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {row['us']} | {row['paper_us']} | {row['over_paper']} | {row['bound']} |"
            for name, row in rows.items()
        ),
    ]


def _logit_loss(loss: Any, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    found: Tensor = loss(student, teacher, labels)
    return found


def _gradient(
    kr: KRLoss,
    student: nn.Module,
    images: Tensor,
    labels: Tensor,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the gradient of one KR step with respect to the student's first weights."""
    del student  # the loss holds its own
    kr = kr.to(device)
    teacher, own = (network.network.to(device, dtype) for network in kr._networks)
    kr = kr.to(dtype)
    teacher.eval()
    own.zero_grad(set_to_none=True)
    kr(images.to(device, dtype), labels.to(device)).backward()
    gradient = next(own.parameters()).grad
    assert gradient is not None  # noqa: S101
    return gradient.detach().clone()


def _row(found: Tensor, right: Tensor, bound: float) -> dict[str, float]:
    right = right.detach().cpu().double()
    difference = (found.detach().cpu().double() - right).norm() / right.norm().clamp(min=1e-12)
    return {"error": float(f"{float(difference):.3g}"), "bound": bound}


def _seconds(work: Callable[[], object], num_steps: int, device: torch.device) -> float:
    clock, _ = clock_for(device)
    started = clock()
    for _ in range(num_steps):
        work()
    return max(1e-9, (clock() - started) / num_steps)
