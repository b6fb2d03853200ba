"""Writing an export: all files or none, each loaded and checked in a fresh process first."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from krscale.data import Dataset
from krscale.data.reading.walking import SYSTEM_FILES, SYSTEM_FOLDERS
from krscale.errors import UserError
from krscale.export.card import CARD_FILE, StudentCard, check_exported, read_card
from krscale.export.formats import FORMATS, check_formats
from krscale.export.raw_files import RawFiles
from krscale.files import new_folder, sha256, write_json
from krscale.models import build_model
from krscale.models.preprocessing import preprocessing_of_network, set_preprocessing
from krscale.training.checkpoint import load_weights

NUM_COMPARED = 512
"""Validation images on which every file is compared with the original."""
TOLERANCE = 1e-4
"""Largest difference of a logit, as a share of the largest logit (at least of 1)."""
ROUNDINGS = 4
"""The same for a student that computes in bf16 or fp16, in roundings of that type."""
ACCURACY_TOLERANCE = 1e-3
"""Share of the test images whose class may change; all may whose logits differ by less than is
allowed."""
PIXEL_TOLERANCE = 3 / 255
"""Largest difference of a pixel that is read from its file again: decoders round differently."""
PREDICT, PREDICT_FILE = "predict", "predict.py"
"""The script in every export: its name as a format, and its file name."""
TIMEOUT_SECONDS = 1800
_OF_AN_EXPORT = frozenset((CARD_FILE, PREDICT_FILE, *(known.file for known in FORMATS.values())))
"""Files that an export may hold, besides those that systems and Python create in any folder."""
_LISTED = 5
_OF_MACOS = (".ds_store", "._")


@dataclass(frozen=True)
class ExportedFile:
    """One file of an export, with what a fresh process measured on it.

    Attributes:
        file: Name of the file.
        format: Its format.
        num_bytes: Its size.
        sha256: Hash of its content.
        max_difference: Largest difference of a logit from the original's, on validation images; for
            the script, of a pixel (1 is white) in the files of the test split.
        num_compared: Number of images on which the difference was measured.
        test_accuracy: Accuracy of this file, computed on the whole test split.
    """

    file: str
    format: str
    num_bytes: int
    sha256: str
    max_difference: float
    num_compared: int
    test_accuracy: float


def export_student(
    student: nn.Module,
    card: StudentCard,
    dataset: Dataset,
    folder: Path,
    formats: Sequence[str],
    raw: RawFiles | None = None,
) -> tuple[ExportedFile, ...]:
    """Write a student into `folder` and check every file; if a check fails, nothing is left there.

    Args:
        student: The student without heads, on the CPU; put into eval mode.
        card: The card of the student.
        dataset: Data whose validation images the logits are compared on, and whose test images the
            accuracy is measured on.
        folder: The target; an earlier export there is replaced after the new one was checked.
        formats: Names of `FORMATS`.
        raw: The files of the test split, on which the script is checked; None if there are none.

    Raises:
        UserError: If a format cannot be written here, `folder` holds something else, or a file
            gives other logits or another test accuracy than the original.
    """
    check_formats(formats)
    check_target(folder)
    if not card.fits(dataset):
        raise UserError(f"{dataset.path}: its images or classes are not those of the student.")
    student.eval()
    with new_folder(folder) as temporary:
        write_json(temporary / CARD_FILE, card.content())
        for name in formats:
            FORMATS[name].write(student, card, temporary / FORMATS[name].file)
        script = Path(__file__).with_name(PREDICT_FILE).read_bytes()
        (temporary / PREDICT_FILE).write_bytes(script)
        logits = _reference(student, dataset)
        allowed = allowed_difference(student, logits)
        reference = {"logits": logits.float().contiguous(), "allowed": torch.tensor(allowed)}
        found = _check_in_fresh_process(reference, card, dataset, temporary, formats, raw)
        files = tuple(_proven(temporary, name, found[name], card, allowed) for name in found)
        content = card.content() | {"files": [asdict(file) for file in files]}
        digest = hashlib.sha256(script).hexdigest()
        content["script"] = {"file": PREDICT_FILE, "num_bytes": len(script), "sha256": digest}
        write_json(temporary / CARD_FILE, content)
    return files


def open_student(folder: Path) -> tuple[nn.Module, StudentCard]:
    """Build the student of an export from its safetensors file, in eval mode.

    Returns:
        The student, which takes what `StudentCard.prepare` returns, and its card.

    Raises:
        UserError: If the folder is not an export, or its files do not fit each other.
    """
    card = read_card(folder)
    student = build_model(
        card.model,
        num_classes=len(card.classes),
        in_channels=card.image_shape[0],
        width=card.width,
        options=card.options,
        output_key=card.output_key,
        fresh=True,
    )
    check_exported(folder, FORMATS["safetensors"].file)
    load_weights(folder / FORMATS["safetensors"].file, student)
    set_preprocessing(student, card.preprocessing)
    return student.eval(), card


def check_target(folder: Path) -> None:
    """Refuse to replace anything but an earlier export.

    Raises:
        UserError: If `folder` exists and is not a folder, or holds anything else. The card alone
            does not prove an export: a run of `krscale distill` has a file of the same name, and
            users may add files of their own.
    """
    if not folder.exists():
        return
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in names if name not in _OF_AN_EXPORT and not _is_of_system(name)]
    if not folder.is_dir() or (names and not (folder / CARD_FILE).is_file()):
        raise UserError(
            f"{folder}: holds something that is not an export of krscale; it would be replaced. "
            "Choose another folder, or one that does not exist yet."
        )
    if others:
        listed = ", ".join(others[:_LISTED]) + (", ..." if len(others) > _LISTED else "")
        raise UserError(
            f"{folder}: holds more than an export of krscale ({listed}); all of it would be "
            "replaced. Move that elsewhere, or choose another folder."
        )


def _is_of_system(name: str) -> bool:
    """Whether files or folders of this name are created by a system or Python, not by users."""
    lower = name.lower()
    return lower in SYSTEM_FILES | SYSTEM_FOLDERS or lower.startswith(_OF_MACOS)


@torch.inference_mode()
def _reference(student: nn.Module, dataset: Dataset) -> Tensor:
    """Return logits `[N, K]` of the original on the first validation images."""
    preprocessing = preprocessing_of_network(student)
    pixels = torch.tensor(dataset.split("val").images[:NUM_COMPARED])
    logits: Tensor = student(preprocessing.apply(pixels, dataset.mean, dataset.std))
    return logits


def allowed_difference(student: nn.Module, logits: Tensor) -> float:
    """Return how far the logits of an exported file may be from those of the student.

    Args:
        student: The student.
        logits: Logits that it gave, in its own type.
    """
    kinds = {logits.dtype, *(weight.dtype for weight in student.parameters())}
    coarsest = max(torch.finfo(kind).eps for kind in kinds if kind.is_floating_point)
    largest = max(1.0, float(logits.abs().max()))
    return max(TOLERANCE, ROUNDINGS * coarsest) * largest


def _check_in_fresh_process(
    original: dict[str, Tensor],
    card: StudentCard,
    dataset: Dataset,
    folder: Path,
    formats: Sequence[str],
    raw: RawFiles | None,
) -> dict[str, Any]:
    """Return what `krscale.export.checking` measures on the files of `folder`, by format."""
    with tempfile.TemporaryDirectory(prefix="krscale-export-") as scratch:
        reference = Path(scratch) / "reference.safetensors"
        save_file(original, reference)
        files = Path(scratch) / "raw.json"
        write_json(files, asdict(raw) if raw else {})
        command = [sys.executable, "-m", "krscale.export.checking", str(folder), str(dataset.path)]
        # The process must also find networks of the user's own.
        path = os.pathsep.join(part or str(Path.cwd()) for part in sys.path)
        done = subprocess.run(  # noqa: S603
            [*command, str(reference), str(files), *formats],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise UserError(f"{card.model}: the export cannot be loaded again: {last[0]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _proven(
    folder: Path, name: str, found: dict[str, Any], card: StudentCard, allowed: float
) -> ExportedFile:
    """Return the file with its measurements, or raise if they differ from the original's."""
    difference, accuracy = found["max_difference"], found["test_accuracy"]
    if name == PREDICT and difference > PIXEL_TOLERANCE:
        raise UserError(
            f"{PREDICT_FILE}: a file of the test split has other pixels than when the data was "
            f"prepared: by up to {255 * difference:.0f} of 255. Were files changed since?"
        )
    # Written so that NaN is refused as well.
    if name != PREDICT and not difference <= allowed:
        raise UserError(
            f"{name}: the export's logits differ from the original's by up to {difference:.2g}, "
            f"more than {allowed:.2g}. Does the network's forward depend on values or batch size?"
        )
    undecided = max(ACCURACY_TOLERANCE, found["undecided"])
    if not abs(accuracy - card.test_accuracy) <= undecided:
        raise UserError(
            f"{name}: the export reaches {accuracy:.4f} on test, the run's table has "
            f"{card.test_accuracy:.4f}. Were data or weights changed since?"
        )
    path = folder / (PREDICT_FILE if name == PREDICT else FORMATS[name].file)
    return ExportedFile(
        file=path.name,
        format=name,
        num_bytes=path.stat().st_size,
        sha256=sha256(path),
        max_difference=difference,
        num_compared=found["num_compared"],
        test_accuracy=accuracy,
    )
