"""Image data: sources, storage and augmentation."""

from typing import TYPE_CHECKING

from krscale.lazy import lazily

if TYPE_CHECKING:
    from krscale.data.arrow import Split
    from krscale.data.content import SPLITS_FILE, compare_counts, compare_lists
    from krscale.data.dataset import SPLITS, Dataset, find_data, open_data, prepare_data
    from krscale.data.describe import describe_data, describe_unlabelled
    from krscale.data.source import Description, SourceData, SplitName
    from krscale.data.sources.registry import SOURCES
    from krscale.data.unlabelled import find_unlabelled, prepare_unlabelled
else:
    __getattr__ = lazily(
        __name__,
        {
            "arrow": ["Split"],
            "content": ["SPLITS_FILE", "compare_counts", "compare_lists"],
            "dataset": ["SPLITS", "Dataset", "find_data", "open_data", "prepare_data"],
            "describe": ["describe_data", "describe_unlabelled"],
            "source": ["Description", "SourceData", "SplitName"],
            "sources.registry": ["SOURCES"],
            "unlabelled": ["find_unlabelled", "prepare_unlabelled"],
        },
    )

__all__ = [
    "SOURCES",
    "SPLITS",
    "SPLITS_FILE",
    "Dataset",
    "Description",
    "SourceData",
    "Split",
    "SplitName",
    "compare_counts",
    "compare_lists",
    "describe_data",
    "describe_unlabelled",
    "find_data",
    "find_unlabelled",
    "open_data",
    "prepare_data",
    "prepare_unlabelled",
]
