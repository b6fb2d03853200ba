"""`student.json`, the card of every export: what the student is and how to prepare its input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from krscale.config import as_record
from krscale.config.records import Accuracy
from krscale.data import Dataset
from krscale.digests import CheckedFile, FileDigest
from krscale.errors import UserError
from krscale.files import read_json, reading
from krscale.models.preprocessing import Preprocessing

CARD_FILE = "student.json"
FORMAT = 1
EXPORT_AGAIN = "`krscale pick` exports the student again."
_MOST_OF_A_SCRIPT = 2**24


@dataclass(frozen=True)
class StudentCard:
    """What a student is, how its images are prepared, and where it came from.

    Attributes:
        model: Name of the architecture, as in an experiment.
        width: Capacity dial of the architecture.
        options: Further arguments of the architecture.
        num_parameters: Parameters of the student, without heads.
        flops: FLOPs of one forward of one image, 2 per multiply-add.
        classes: Name of each class, in the order of the logits.
        image_shape: `(C, H, W)`.
        mean: Mean of each channel in the student's order of channels, in units of `pixel_range`.
        std: Standard deviation of each channel, likewise.
        accuracy: `val` and `test`, shares in [0, 1]; `val` is None if the student was trained on
            validation images.
        provenance: Run, commit, fingerprints, method, settings, seed.
        output_key: Which of several outputs of the architecture are the logits; empty to find them
            automatically.
        pixel_range: Range of pixels before they are normalised, `0..1` or `0..255`.
        channel_order: Order of channels of the student's input, `rgb` or `bgr`; images of
            `image_shape` are red first.
        input_size: Height and width of the student's input; None for those of `image_shape`.
        interpolation: How images are scaled to `input_size`.
        decoding: How image files become pixels of `image_shape` (`krscale.export.raw_files`).
    """

    model: str
    width: int
    options: Mapping[str, Any]
    num_parameters: int
    flops: int
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accuracy: Mapping[str, Accuracy | None]
    provenance: Mapping[str, Any]
    output_key: str = ""
    pixel_range: str = "0..1"
    channel_order: str = "rgb"
    input_size: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    decoding: Mapping[str, Any] = field(default_factory=dict)

    @property
    def preprocessing(self) -> Preprocessing:
        """The steps from the pixels of an image of `image_shape` to the input of the student."""
        return Preprocessing(
            self.mean,
            self.std,
            self.pixel_range,
            self.channel_order,
            self.input_size,
            self.interpolation,
        )

    def prepare(self, pixels: Tensor) -> Tensor:
        """Return the input of the student for images `[B, *image_shape]` uint8.

        Raises:
            UserError: If they have another type or shape: images in 0..1 would be divided again.
        """
        if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != self.image_shape:
            wanted = ", ".join(map(str, self.image_shape))
            raise UserError(
                f"the student's card prepares uint8 images [B, {wanted}] in 0..255, not "
                f"{pixels.dtype} of shape {list(pixels.shape)}."
            )
        return self.preprocessing.apply(pixels, self.mean, self.std)

    @property
    def test_accuracy(self) -> float:
        """The test accuracy that every exported file must reproduce."""
        value = self.accuracy["test"]
        if value is None:
            raise ValueError("a card without a test accuracy cannot be checked")
        return value

    def fits(self, dataset: Dataset) -> bool:
        """Whether the images and classes of a data set are those of the student."""
        return (self.image_shape, self.classes) == (dataset.image_shape, dataset.classes)

    def content(self) -> dict[str, Any]:
        """Return the card as JSON-serialisable content, in an order for readers."""
        return {
            "format": FORMAT,
            "architecture": {
                "model": self.model,
                "width": self.width,
                "options": dict(self.options),
                "output_key": self.output_key,
                "num_classes": len(self.classes),
                "in_channels": self.image_shape[0],
                "num_parameters": self.num_parameters,
                "flops": self.flops,
            },
            "preprocessing": {
                "decoding": dict(self.decoding),
                "image_shape": list(self.image_shape),
                "uint8_scale": 1 / 255,
                "mean": list(self.mean),
                "std": list(self.std),
                "pixel_range": self.pixel_range,
                "channel_order": self.channel_order,
                "input_size": list(self.input_size) if self.input_size else None,
                "interpolation": self.interpolation,
                "safetensors_input": self._safetensors_input(),
                "graph_input": "pixels * uint8_scale; all else is inside the graph",
            },
            "classes": list(self.classes),
            "accuracy": dict(self.accuracy),
            "provenance": dict(self.provenance),
        }

    def _safetensors_input(self) -> str:
        """Return a formula for the input of the bare weights."""
        steps = "pixels"
        if self.channel_order == "bgr":
            steps += " in order blue, green, red"
        if self.input_size:
            height, width = self.input_size
            steps = f"({steps}, scaled to cover {height}x{width} and cut to it)"
        factor = " * uint8_scale" if self.pixel_range == "0..1" else ""
        return f"({steps}{factor} - mean) / std"


def exported_files(folder: Path) -> dict[str, FileDigest]:
    """Return the digests of the files of an export, by their names; none while it is written.

    Raises:
        DamagedFileError: If its card is not what was written.
    """
    card = folder / CARD_FILE
    content = read_json(card, EXPORT_AGAIN)
    with reading(card, EXPORT_AGAIN):
        listed = [*content.get("files", []), content.get("script")]
        return {str(file["file"]): _digest(folder, file) for file in listed if file}


def _digest(folder: Path, file: Mapping[str, Any]) -> FileDigest:
    """Return the digest of a file; an older krscale did not store the size of its script."""
    path = folder / str(file["file"])
    now = path.stat().st_size if path.is_file() else 0
    known = min(now, _MOST_OF_A_SCRIPT) if path.suffix == ".py" else now
    num_bytes = int(file.get("num_bytes", known))
    return FileDigest.whole(num_bytes, str(file["sha256"]))


def check_exported(folder: Path, name: str = "") -> None:
    """Compare files of an export with their hashes in the card.

    Args:
        folder: The export.
        name: Name of one file; empty compares all of them.

    Raises:
        DamagedFileError: For the first file that is not what was exported; names it.
    """
    for file, digest in exported_files(folder).items():
        if name in ("", file):
            CheckedFile(folder / file, digest, EXPORT_AGAIN).check()


def read_card(folder: Path) -> StudentCard:
    """Read the card of an export.

    Raises:
        UserError: If the folder has no card, or one of another version.
    """
    path = folder / CARD_FILE
    if not path.is_file():
        raise UserError(f"{folder}: not an export: it has no {CARD_FILE}.")
    content = read_json(path, EXPORT_AGAIN)
    with reading(path, EXPORT_AGAIN):
        if content["format"] != FORMAT:
            raise UserError(f"{path}: format {content['format']}; this krscale reads {FORMAT}.")
        fields = {**content["architecture"], **content["preprocessing"], **content}
        _ = content["accuracy"]["test"]
    return as_record(path, fields, StudentCard, EXPORT_AGAIN)
