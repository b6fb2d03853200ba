"""A check of images finds what preparing them would find."""

from pathlib import Path

import numpy as np

from krscale.config import DataConfig
from krscale.data import Split
from krscale.data.check import _rows
from krscale.data.cutting import cut_splits
from krscale.data.source import SourceData
from krscale.data.splits.duplicates import digests, groups_of_copies
from krscale.data.splits.splitting import cut_rows


def test_the_splits_are_those_that_are_built_whether_a_cut_separates_copies(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4), dtype=np.uint8)
    images[2] = images[0]
    data = SourceData(("ant", "bee"), {"train": Split(images, np.arange(40) % 2)})
    groups, as_first_cut = groups_of_copies(digests(images)), 0
    for seed in range(12):
        config, scratch = DataConfig(seed=seed), tmp_path / str(seed)
        scratch.mkdir()
        built = cut_splits(data, config, scratch).rows.rows
        found = _rows(data, config, groups)
        first = cut_rows(data, config).rows
        for name, (_, rows) in built.items():
            assert np.array_equal(found[name][1], rows)
        as_first_cut += all(np.array_equal(found[name][1], first[name][1]) for name in built)
    assert 0 < as_first_cut < 12
