"""The jobs of `docs/claims.md` that need CIFAR-100, planned on a small folder in its format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from krscale.config import load
from krscale.search.plan import describe_plan
from krscale.setup.assemble import describe

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """CIFAR-100's binary files: a coarse label, a fine one and 3,072 pixels a row."""
    generator = np.random.default_rng(0)
    for name, num_images in (("train.bin", 1000), ("test.bin", 100)):
        rows = generator.integers(0, 256, (num_images, 3074), dtype=np.uint8)
        rows[:, 1] = np.arange(num_images) % 100
        (tmp_path / name).write_bytes(rows.tobytes())
    names = "\n".join(f"class {number}" for number in range(100))
    (tmp_path / "fine_label_names.txt").write_text(names)
    (tmp_path / "coarse_label_names.txt").write_text("any")
    return tmp_path


@pytest.mark.parametrize(
    ("job", "teacher", "student"),
    [
        # Published as 7.43M and 1.23M, and as 2.25M and 0.70M.
        ("cifar100_resnet.toml", 7_433_860, 1_233_540),
        ("cifar100_wide_resnet.toml", 2_255_156, 703_284),
    ],
)
def test_the_published_pairs_have_their_published_sizes(
    job: str, teacher: int, student: int, folder: Path
) -> None:
    experiment = load(str(JOBS / job), [f"data.path={str(folder)!r}"])
    plan = describe(experiment)
    assert plan.teacher_parameters == teacher
    assert [size.num_parameters for size in plan.sizes] == [student]
    assert "kr+dkd: distill.posterior.dkd" in describe_plan(experiment)
