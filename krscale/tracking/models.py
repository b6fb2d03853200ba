"""A student as a model of MLflow's registry: what is saved, and under which names."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from krscale.files import new_folder, sha256
from krscale.tracking.refusals import Refused

HASH_TAG = "krscale.sha256"
"""Tag with the digest of the ONNX file: shows whether a version is in the registry already."""
MODEL_FILE = "model.onnx"
"""MLflow's name for the file in the folder of a model."""


@dataclass(frozen=True)
class Registration:
    """The registry's entry for a student.

    Attributes:
        name: Name of the registered model: all students of a run are versions of it.
        alias: Name of this version: its size. A later student of this size replaces it.
        tags: Tag -> text of the version; `HASH_TAG` among them.
        description: A line for a reader.
    """

    name: str
    alias: str
    tags: Mapping[str, str]
    description: str

    @property
    def uri(self) -> str:
        """The URI for `mlflow.pyfunc.load_model`."""
        return f"models:/{self.name}@{self.alias}"

    def content(self) -> dict[str, Any]:
        """Return the fields for the spool."""
        return asdict(self) | {"tags": dict(self.tags)}


def save_onnx_model(
    onnx_file: Path, folder: Path, image_shape: Sequence[int], num_classes: int
) -> None:
    """Write an ONNX file as a model that MLflow can load and serve; it contains no pickle.

    The model contains the file itself, so that its digest is that of `HASH_TAG`.

    Args:
        onnx_file: Takes `images` `[B, C, H, W]` in 0..1, returns `logits` `[B, K]`.
        folder: The folder to write; replaced if it exists.
        image_shape: `(C, H, W)`.
        num_classes: `K`.
    """
    import onnx

    with new_folder(folder) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's warnings about its own type hints
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
            # Without these, MLflow would start the model to find out what it imports.
            pip_requirements=[f"{name}=={version(name)}" for name in ("onnxruntime", "numpy")],
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,
        )
        # MLflow writes the model anew, and another version of ONNX may order its bytes differently.
        shutil.copyfile(onnx_file, temporary / MODEL_FILE)


def require_whole(folder: Path, digest: str) -> None:
    """Refuse a saved model that is no longer the file that was exported.

    Args:
        folder: What `save_onnx_model` wrote.
        digest: SHA-256 of the ONNX file.

    Raises:
        Refused: If its file is missing or has changed.
    """
    file = folder / MODEL_FILE
    if not file.is_file():
        raise Refused(f"{file}: no such file")
    if any(folder.glob("*.data")):
        return  # saved by an older version, which put the weights beside the graph
    if sha256(file) != digest:
        raise Refused(f"{file} is not the file that was exported; pick the student again")
