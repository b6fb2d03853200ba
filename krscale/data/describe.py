"""Describe a data set without writing it, for `--dry-run`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from krscale.config import DataConfig
from krscale.data.dataset import dataset_path, open_data
from krscale.data.source import Description
from krscale.data.sources.registry import open_source
from krscale.data.splits.limiting import limit_images
from krscale.data.splits.splitting import check_source, cut_rows
from krscale.data.unlabelled import check_shape, find_unlabelled
from krscale.data.unlabelled_sources import open_unlabelled


def describe_data(config: DataConfig, cache: Path) -> Description:
    """Return the sizes of a data set: from the cache, else from the source's settings or images.

    Nothing is written. Copies of images are not detected, since that needs all images decoded.
    """
    path = dataset_path(config, cache)
    if path.is_dir():
        dataset = open_data(path)
        return Description(dataset.num_classes, dataset.image_shape, dataset.num_samples["train"])
    source = open_source(config)
    known = source.describe()
    if known is not None:
        return replace(known, num_train=min(known.num_train, config.max_images or known.num_train))
    data = source.read(lambda done, total: None)
    check_source(config.source, data)
    data = limit_images(data, config)
    train = data.splits["train"]
    channels, height, width = train.image_shape
    _, rows = cut_rows(data, config).rows["train"]
    return Description(len(data.classes), (channels, height, width), len(rows), data.notes)


def describe_unlabelled(config: DataConfig, shape: tuple[int, ...], cache: Path) -> int:
    """Return the number of images without labels; nothing is written.

    If they are not prepared yet, the number includes copies of training images.

    Args:
        config: The data section.
        shape: `(C, H, W)` of the labelled images.
        cache: Folder that runs share.

    Raises:
        UserError: If they cannot be read.
    """
    if not config.unlabelled:
        return 0
    path = dataset_path(config, cache)
    taught = find_unlabelled(config, open_data(path), cache) if path.is_dir() else None
    if taught is not None:
        return taught.num_unlabelled
    data = open_unlabelled(config, shape[0]).read(lambda done, total: None)
    check_shape(data, config, shape)
    return len(data.splits["train"])
