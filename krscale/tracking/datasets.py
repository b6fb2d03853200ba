"""The data that a run learned from and was tested on, in MLflow's format for datasets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from krscale.config import DataConfig
from krscale.redaction import redact

if TYPE_CHECKING:
    from krscale.data import Dataset  # needs torch, which nothing else here does


@dataclass(frozen=True)
class DatasetUsed:
    """One split of a data set, as MLflow shows it.

    Attributes:
        name: Name of the source.
        digest: Fingerprint of the data, and the split: MLflow treats entries with the same name and
            digest as one data set.
        context: Its use: `train`, `val`, `test` or `unlabelled`.
        source: JSON of the settings it was read with.
        profile: JSON of the number of images and of classes.
        image_shape: `(C, H, W)`.
    """

    name: str
    digest: str
    context: str
    source: str
    profile: str
    image_shape: tuple[int, int, int]

    def content(self) -> dict[str, Any]:
        """Return the fields for the spool."""
        return asdict(self)


def datasets_used(
    dataset: Dataset, config: DataConfig, taught: Dataset | None = None
) -> list[DatasetUsed]:
    """Describe every split of a data set, and the images without labels.

    Args:
        dataset: The prepared data.
        config: What it was prepared from.
        taught: What students of a teacher learn from, if it is more than train.
    """
    source = config.model_dump(mode="json", exclude_defaults=True) | {"source": dataset.source}
    used = [
        (split, f"{dataset.fingerprint}-{split}", number)
        for split, number in dataset.num_samples.items()
    ]
    if taught is not None:
        used.append(("unlabelled", f"{taught.fingerprint}-unlabelled", taught.num_unlabelled))
    return [
        DatasetUsed(
            name=dataset.source,
            digest=digest,
            context=context,
            source=redact(json.dumps(source)),
            profile=json.dumps({"num_images": number, "num_classes": dataset.num_classes}),
            image_shape=dataset.image_shape,
        )
        for context, digest, number in used
    ]


def tensor_schema(image_shape: Sequence[int]) -> str:
    """Return MLflow's JSON for a tensor of uint8 images `[N, C, H, W]` and one of labels `[N]`."""

    def tensor(name: str, kind: str, shape: Sequence[int]) -> str:
        spec = {"type": "tensor", "tensor-spec": {"dtype": kind, "shape": list(shape)}}
        return json.dumps([{**spec, "name": name}])

    features = tensor("images", "uint8", (-1, *image_shape))
    targets = tensor("labels", "int64", (-1,))
    return json.dumps({"mlflow_tensorspec": {"features": features, "targets": targets}})
