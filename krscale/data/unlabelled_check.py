"""Check images without labels before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from krscale.config import DataConfig
from krscale.data.seen import Seen
from krscale.data.source import Report, SplitName
from krscale.data.splits.duplicates import Digests, digests_of
from krscale.data.unlabelled import Copies, check_shape
from krscale.data.unlabelled_sources import open_unlabelled
from krscale.errors import UserError


@dataclass(frozen=True)
class UnlabelledCheck:
    """Result of checking images without labels.

    Attributes:
        num_images: Number of images that can be read and are not copies of training images.
        notes: What the user should know.
        problems: Why the images would be refused.
    """

    num_images: int = 0
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def check_unlabelled(
    config: DataConfig, shape: tuple[int, ...], known: Mapping[SplitName, Digests], report: Report
) -> UnlabelledCheck:
    """Read every image without a label once; write nothing.

    Args:
        config: The data section.
        shape: `(C, H, W)` of the labelled images.
        known: Digests of the labelled images, by split.
        report: Called with the number of images done and of all images.

    Raises:
        UserError: If there is nothing to check.
    """
    if not config.unlabelled:
        return UnlabelledCheck()
    data = open_unlabelled(config, shape[0]).read(report)
    seen = data.seen or Seen()
    pixels = digests_of(data.splits["train"])
    faulty = {fault.number for fault in (*seen.unreadable, *seen.misfits)}
    notes = (*data.notes, *seen.notes(config.unlabelled, config.background))
    if config.skip_unreadable:
        seen.left_out |= {(fault.split, fault.number) for fault in seen.unreadable}
    problems = []
    for refuse in (
        partial(check_shape, data, config, shape),
        partial(seen.refuse, config.unlabelled),
    ):
        try:
            refuse()
        except UserError as error:
            problems.append(str(error))
    # Images with a fault are all black and must not count as copies of one another.
    kept = np.setdiff1d(np.arange(len(pixels)), sorted(faulty))
    copies = Copies.find(known, pixels[kept]).renumbered(kept)
    if problem := copies.problem(config, data):
        problems.append(problem)
    notes += copies.notes(config)
    return UnlabelledCheck(len(kept) - len(copies.of_train), notes, tuple(problems))
