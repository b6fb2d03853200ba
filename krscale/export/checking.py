"""`python -m krscale.export.checking FOLDER DATA REFERENCE RAW FORMAT...`: checking an export.

It runs in a process of its own, so that no state of the exporting process can hide a fault. Every
file is loaded as a user would load it, compared with the original's logits, and tested. The script
in the export is tested from the image files themselves. Prints one line of JSON.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file

from krscale.data import Split, open_data
from krscale.data.arrow import Images
from krscale.export.card import CARD_FILE
from krscale.export.formats import FORMATS, INPUT
from krscale.export.writing import PREDICT, PREDICT_FILE, open_student
from krscale.files import read_json

BATCH_SIZE = 256

Logits = npt.NDArray[np.float32]
Predict = Callable[[Images], Logits]
"""Maps uint8 images `[B, C, H, W]` to logits `[B, K]`."""


def main(arguments: Sequence[str]) -> int:
    """Check every format and print what was found."""
    folder, data, reference, raw, *formats = arguments
    dataset = open_data(Path(data))
    original = load_file(reference)
    expected, allowed = original["logits"], float(original["allowed"])
    images, test = dataset.split("val").images[: len(expected)], dataset.split("test")
    found = {
        name: _check(OPENERS[name](Path(folder)), images, expected, test, allowed)
        for name in formats
    }
    files = read_json(Path(raw))
    if files:
        undecided = max(of_format["undecided"] for of_format in found.values())
        of_files = _check_raw(Path(folder), files, test, formats)
        found[PREDICT] = {**of_files, "undecided": undecided}
    print(json.dumps(found))
    return 0


def _check(
    predict: Predict, images: Images, expected: Logits, test: Split, allowed: float
) -> dict[str, Any]:
    # Also a single image: a graph with the fixed batch size of its tracing fails here.
    found = (
        np.abs(predict(images[:1]) - expected[:1]).max(),
        np.abs(_in_batches(predict, images) - expected).max(),
    )
    difference = float(np.max(found))  # NaN if any is; Python's `max` depends on the order
    logits = _in_batches(predict, test.images)
    # A rounding of both logits may exchange the largest two.
    margins = np.diff(np.sort(logits, axis=1)[:, -2:], axis=1)
    return {
        "max_difference": difference,
        "num_compared": len(expected),
        "test_accuracy": float((logits.argmax(axis=1) == test.labels).mean()),
        "undecided": float((margins <= 2.0 * allowed).mean()),
    }


def _check_raw(
    folder: Path, raw: dict[str, list[str]], test: Split, formats: Sequence[str]
) -> dict[str, Any]:
    """Read the files with the script of the export, and classify them."""
    spec = importlib.util.spec_from_file_location("predict", folder / PREDICT_FILE)
    if spec is None or spec.loader is None:
        raise ImportError(f"{PREDICT_FILE} cannot be loaded")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    files, labels = [Path(file) for file in raw["files"]], raw["labels"]
    card = read_json(folder / CARD_FILE)
    classes, preprocessing = card["classes"], card["preprocessing"]
    difference = right = 0
    predict = OPENERS[formats[0]](folder) if "onnx" not in formats else None
    for start in range(0, len(files), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        pixels = np.stack([script.load_pixels(file, preprocessing) for file in files[part]])
        stored = test.images[part].astype(np.int16)
        difference = max(difference, int(np.abs(pixels - stored).max()))
        if predict is not None:
            answers = predict(pixels).argmax(axis=1)
            right += sum(classes[a] == name for a, name in zip(answers, labels[part], strict=True))
    accuracy = right / len(files)
    if predict is None:
        accuracy = script.Student(folder).accuracy(list(zip(files, labels, strict=True)))
    return {
        "max_difference": difference / 255,
        "num_compared": len(files),
        "test_accuracy": accuracy,
    }


def _in_batches(predict: Predict, images: Images) -> Logits:
    starts = range(0, len(images), BATCH_SIZE)
    return np.concatenate([predict(images[start : start + BATCH_SIZE]) for start in starts])


def _open_safetensors(folder: Path) -> Predict:
    student, card = open_student(folder)

    @torch.inference_mode()
    def predict(images: Images) -> Logits:
        logits: Logits = student(card.prepare(torch.tensor(images))).float().numpy()
        return logits

    return predict


def _open_onnx(folder: Path) -> Predict:
    onnxruntime = importlib.import_module("onnxruntime")
    path = str(folder / FORMATS["onnx"].file)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def predict(images: Images) -> Logits:
        logits: Logits = session.run(None, {INPUT: images.astype(np.float32) / 255})[0]
        return logits

    return predict


def _open_pt2(folder: Path) -> Predict:
    module = torch.export.load(folder / FORMATS["pt2"].file).module()

    @torch.inference_mode()
    def predict(images: Images) -> Logits:
        logits: Logits = module(torch.tensor(images).float() / 255).numpy()
        return logits

    return predict


OPENERS: dict[str, Callable[[Path], Predict]] = {
    "safetensors": _open_safetensors,
    "onnx": _open_onnx,
    "pt2": _open_pt2,
}
"""Formats by name, each with a function that loads it as a user would."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
