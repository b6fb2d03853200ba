"""What a data set would be, without writing it: for `--dry-run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from krscale.config import DataConfig
from krscale.data.dataset import dataset_path, open_data
from krscale.data.sources import open_source
from krscale.data.splitting import check_source, cut_splits


@dataclass(frozen=True)
class Description:
    """Sizes of a data set.

    Attributes:
        num_classes: Number of classes `K`.
        image_shape: `(C, H, W)`.
        num_train: Images of the training split.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    num_train: int


def describe_data(config: DataConfig, cache: Path) -> Description:
    """Return the sizes of a data set: from the cache if it is there, else by reading the source.

    Nothing is written.
    """
    path = dataset_path(config, cache)
    if path.is_dir():
        dataset = open_data(path)
        return Description(dataset.num_classes, dataset.image_shape, dataset.num_samples["train"])
    data = open_source(config).read(lambda done, total: None)
    check_source(config.source, data)
    train = cut_splits(data, config)["train"]
    channels, height, width = train.images.shape[1:]
    return Description(len(data.classes), (channels, height, width), len(train))
