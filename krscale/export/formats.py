"""The formats that a student is exported to, and what each needs.

The graphs (ONNX and torch.export) take float32 images `[B, C, H, W]` in 0..1, as image libraries
give them (torchvision's `ToTensor`, PIL divided by 255), and return logits `[B, K]`. The student's
own preprocessing (size, order of channels, mean and standard deviation) is inside the graph, so
that it cannot be forgotten or replaced by a wrong one.
"""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from krscale.errors import UserError, first_line, unknown_name
from krscale.export.card import StudentCard
from krscale.models.preprocessing import PIXEL_RANGES
from krscale.models.resizing import resize_weights
from krscale.training.checkpoint import save_weights

INPUT, OUTPUT, BATCH = "images", "logits", "batch"
OPSET = 18
"""The oldest opset that torch writes without converting, and so the one most runtimes support."""
_METADATA = "krscale"


class PreparedStudent(nn.Module):
    """A student with its own preprocessing in front of it.

    Args:
        student: Takes images as described in `card`.
        card: The card of the student.
    """

    mean: Tensor
    std: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, student: nn.Module, card: StudentCard) -> None:
        super().__init__()
        self.student = student
        self.unit = 255.0 / PIXEL_RANGES[card.pixel_range]
        self.is_bgr = card.channel_order == "bgr"
        self.is_scaled = card.input_size not in (None, card.image_shape[1:])
        self.register_buffer("mean", torch.tensor(card.mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(card.std).reshape(1, -1, 1, 1))
        if card.input_size is not None and self.is_scaled:
            sizes = (card.image_shape[1:], card.input_size)
            rows, columns = resize_weights(*sizes, card.interpolation, torch.device("cpu"))
            self.register_buffer("rows", rows)
            self.register_buffer("columns", columns)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` in 0..1 to logits `[B, K]`, in fp32."""
        if self.unit != 1.0:
            images = images * self.unit
        if self.is_bgr:
            images = images.flip(1)
        if self.is_scaled:
            images = self.rows @ images @ self.columns
        logits: Tensor = self.student((images - self.mean) / self.std)
        return logits if logits.dtype == torch.float32 else logits.float()


@dataclass(frozen=True)
class Format:
    """One way to write a student.

    Attributes:
        file: Name of the file.
        packages: Packages for writing and checking it, besides krscale's own dependencies.
        write: Writes the student with its card to a path.
    """

    file: str
    packages: tuple[str, ...]
    write: Callable[[nn.Module, StudentCard, Path], None]


def check_formats(names: Sequence[str]) -> None:
    """Refuse formats that do not exist or cannot be written here, before any work is done.

    Raises:
        UserError: Naming the format, or the extra that installs what is missing.
    """
    if not names:
        raise UserError(f"--format: at least one format is needed. Allowed: {', '.join(FORMATS)}.")
    for name in names:
        if name not in FORMATS:
            raise unknown_name("format", name, FORMATS, "--format")
        for package in FORMATS[name].packages:
            _import_extra(package, name)


def example_images(card: StudentCard) -> Tensor:
    """Return two images `[2, C, H, W]` to trace with; one would make the batch a constant."""
    return torch.rand(2, *card.image_shape)


def _write_safetensors(student: nn.Module, card: StudentCard, path: Path) -> None:
    save_weights(path, student, card.content(), digest=False)  # the card has it


def _write_pt2(student: nn.Module, card: StudentCard, path: Path) -> None:
    program = _trace(student, card, "pt2")
    torch.export.save(program, path, extra_files={"student.json": json.dumps(card.content())})


def _write_onnx(student: nn.Module, card: StudentCard, path: Path) -> None:
    traced = _trace(student, card, "onnx")
    with _explained("onnx"), _quiet_exporter():
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: BATCH}},
            verbose=False,
        )
        if program is None:
            raise UserError("onnx: torch returned no program.")
        program.model.metadata_props[_METADATA] = json.dumps(card.content())
        program.save(path, external_data=False)
    onnx = importlib.import_module("onnx")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # of two packages
        raise UserError(
            f"onnx: opset {OPSET} cannot express this network ({first_line(error)[:300]}). It has "
            "no convolutions in bfloat16. Leave this format out: --format safetensors,pt2."
        ) from error


FORMATS: Mapping[str, Format] = {
    "safetensors": Format("student.safetensors", (), _write_safetensors),
    "onnx": Format("student.onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx),
    "pt2": Format("student.pt2", (), _write_pt2),
}
"""Formats by name."""


def _trace(student: nn.Module, card: StudentCard, name: str) -> ExportedProgram:
    """Trace the student with its preprocessing, for any batch size."""
    model = PreparedStudent(student, card).eval()
    with _explained(name), _quiet_exporter():
        shapes = {INPUT: {0: Dim(BATCH)}}
        program = torch.export.export(model, (example_images(card),), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        # Stack traces would reveal paths of the exporting machine.
        node.meta.pop("stack_trace", None)
    return program


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn any exception of the exporter into an error that the user can act on."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise UserError(
            f"{name}: torch cannot export this network ({type(error).__name__}: {reason[:300]}). "
            "Its forward must not depend on the values or the number of the images; "
            "--format safetensors always works."
        ) from error


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's own messages about missing torchvision and about deprecations."""
    logger = logging.getLogger("torch.onnx._internal.exporter")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        logger.setLevel(level)


def _import_extra(package: str, name: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        others = ",".join(key for key, value in FORMATS.items() if not value.packages)
        raise UserError(
            f"--format: {name} needs the package {package!r}, which cannot be imported ({error}). "
            f"Install the extra krscale[export], or leave it out: --format {others}."
        ) from error
