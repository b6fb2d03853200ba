"""Images: where they come from, how they are kept, and how they are varied."""

from krscale.data.arrow import Split
from krscale.data.content import SPLITS_FILE, compare_counts, compare_lists
from krscale.data.dataset import SPLITS, Dataset, find_data, open_data, prepare_data
from krscale.data.describe import describe_data
from krscale.data.source import Description, SourceData, SplitName
from krscale.data.sources import SOURCES

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
    "find_data",
    "open_data",
    "prepare_data",
]
