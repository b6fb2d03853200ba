"""A student as a model of MLflow's registry: what is saved, and under which names it goes in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from krscale.files import new_folder

HASH_TAG = "krscale.sha256"
"""Of the ONNX file: tells whether a version is in the registry already."""


@dataclass(frozen=True)
class Registration:
    """What the registry is told of a student.

    Attributes:
        name: Name of the registered model: all students of a run are versions of it.
        alias: Name of this version: its size. A later student of the size takes it over.
        tags: Tag -> text of the version; `HASH_TAG` among them.
        description: A line for a reader.
    """

    name: str
    alias: str
    tags: Mapping[str, str]
    description: str

    @property
    def uri(self) -> str:
        """What `mlflow.pyfunc.load_model` takes."""
        return f"models:/{self.name}@{self.alias}"

    def content(self) -> dict[str, Any]:
        """Return it for the spool."""
        return asdict(self) | {"tags": dict(self.tags)}


def save_onnx_model(
    onnx_file: Path, folder: Path, image_shape: Sequence[int], num_classes: int
) -> None:
    """Write an ONNX file as a model that MLflow loads and serves; it holds no pickle.

    Args:
        onnx_file: Takes `images` `[B, C, H, W]` in 0..1, returns `logits` `[B, K]`.
        folder: Where to; replaced when it exists.
        image_shape: `(C, H, W)`.
        num_classes: `K`.
    """
    import onnx

    with new_folder(folder) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's about its own type hints
        import mlflow.onnx
        from mlflow.models import ModelSignature
        from mlflow.types.schema import Schema, TensorSpec

        kind = np.dtype(np.float32)
        mlflow.onnx.save_model(
            onnx.load(onnx_file),
            temporary,
            signature=ModelSignature(
                Schema([TensorSpec(kind, (-1, *image_shape), "images")]),
                Schema([TensorSpec(kind, (-1, num_classes), "logits")]),
            ),
            input_example={"images": np.zeros((1, *image_shape), np.float32)},
            # Named here, or MLflow would start the model to find out what it imports.
            pip_requirements=[f"{name}=={version(name)}" for name in ("onnxruntime", "numpy")],
            onnx_execution_providers=["CPUExecutionProvider"],
        )
