"""Measure the information gain of every block of a teacher, as a basis for choosing its taps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from krscale.config import Experiment
from krscale.data import Dataset
from krscale.knowledge.probes import information_gain
from krscale.knowledge.taps import TappedModel, settle_layouts
from krscale.models.blocks import Block, list_blocks
from krscale.models.preprocessing import input_shape
from krscale.setup.inputs import is_foreign
from krscale.setup.kept_probes import probe_grid
from krscale.setup.tap_reading import fit_probes, read_logits
from krscale.setup.teacher import find_teacher, foreign_teacher, open_teacher

_AT_ONCE = 4
"""Number of blocks whose features of all training images are held in memory together."""


def measure_blocks(
    experiment: Experiment,
    dataset: Dataset,
    device: torch.device,
    report: Callable[[int, int], None],
) -> tuple[tuple[Block, ...], dict[str, float]]:
    """Return the blocks of an experiment's teacher, and the gain of each possible tap.

    As for taps, a linear probe of each is fitted on the training images and measured on validation.

    Args:
        experiment: An experiment whose teacher comes with weights or was prepared before.
        dataset: Its data.
        device: Device that the teacher runs on.
        report: Called with the number of blocks done and of all blocks.

    Returns:
        All blocks, and the information gain by path; the classifier's path is empty. A block has
        none if its channels cannot be distinguished from its positions.

    Raises:
        UserError: If the teacher would have to be trained first.
    """
    network = _teacher(experiment, dataset).to(device)
    shape = input_shape(network, dataset.image_shape)
    declared = "" if experiment.teacher.tap_layout == "auto" else experiment.teacher.tap_layout
    blocks = list_blocks(network, shape)
    paths = [block.path for block in blocks if block.layout != "?" or declared]
    labels = torch.tensor(dataset.split("val").labels, device=device)
    gains: dict[str, float] = {}
    for group in _groups(paths):
        settle_layouts(network, group, shape, declared, "teacher")
        tapped = TappedModel(network, group).eval().requires_grad_(False)
        probes = fit_probes(tapped, dataset, device, probe_grid(experiment))
        logits = read_logits(tapped, probes, dataset, "val", device)
        found = information_gain(logits, labels).tolist()
        gains |= dict(zip((*group, ""), found, strict=True))
        report(len(gains) - 1, len(paths))
    return blocks, gains


def _teacher(experiment: Experiment, dataset: Dataset) -> nn.Module:
    if is_foreign(experiment.teacher):
        return foreign_teacher(experiment, dataset, torch.device("cpu"))
    _, folder = find_teacher(experiment, dataset)
    model: nn.Module = open_teacher(experiment, dataset, folder).tapped.model
    return model


def _groups(paths: Sequence[str]) -> list[Sequence[str]]:
    firsts = range(0, len(paths), _AT_ONCE)
    return [paths[first : first + _AT_ONCE] for first in firsts] or [()]
