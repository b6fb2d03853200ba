"""`python -m krscale.export.checking FOLDER DATA REFERENCE FORMAT...`: what a stranger gets.

Run in a process of its own, so that nothing of the exporting one can help: every file is loaded as
its user would load it, compared with the original's logits, and tested. Prints one line of JSON.
"""

from __future__ import annotations

import importlib
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
from krscale.export.formats import FORMATS, INPUT
from krscale.export.writing import open_student

BATCH_SIZE = 256

Logits = npt.NDArray[np.float32]
Predict = Callable[[Images], Logits]
"""Maps uint8 images `[B, C, H, W]` to logits `[B, K]`."""


def main(arguments: Sequence[str]) -> int:
    """Check every format and print what was found."""
    folder, data, reference, *formats = arguments
    dataset = open_data(Path(data))
    expected = load_file(reference)["logits"]
    images, test = dataset.split("val").images[: len(expected)], dataset.split("test")
    found = {name: _check(OPENERS[name](Path(folder)), images, expected, test) for name in formats}
    print(json.dumps(found))
    return 0


def _check(predict: Predict, images: Images, expected: Logits, test: Split) -> dict[str, Any]:
    # One image alone as well: a graph that froze the batch it was traced with fails here.
    alone = np.abs(predict(images[:1]) - expected[:1]).max()
    difference = max(float(alone), float(np.abs(_in_batches(predict, images) - expected).max()))
    correct = (_in_batches(predict, test.images).argmax(axis=1) == test.labels).mean()
    return {
        "max_difference": difference,
        "largest_logit": float(np.abs(expected).max()),
        "num_compared": len(expected),
        "test_accuracy": float(correct),
    }


def _in_batches(predict: Predict, images: Images) -> Logits:
    starts = range(0, len(images), BATCH_SIZE)
    return np.concatenate([predict(images[start : start + BATCH_SIZE]) for start in starts])


def _open_safetensors(folder: Path) -> Predict:
    student, card = open_student(folder)

    @torch.inference_mode()
    def predict(images: Images) -> Logits:
        logits: Logits = student(card.prepare(torch.tensor(images))).numpy()
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
"""Formats by name, each with the way a user loads it."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
