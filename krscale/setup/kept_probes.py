"""Probes stored with a teacher: one set for each grid on which its taps have been read.

Probes that read means over all positions are made with the teacher, since its own measures depend
on them. Probes of a grid are stored beside them in separate files, when an experiment first needs
that grid. Neither the teacher nor earlier files are changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from krscale.config import Experiment, read_record
from krscale.config.records import Accuracy
from krscale.data import Dataset
from krscale.digests import check_file, write_digest
from krscale.errors import UserError
from krscale.files import damaged, reading, write_atomic, write_json
from krscale.knowledge import probes as limits
from krscale.knowledge.probes import Probes, information_gain
from krscale.knowledge.taps import TappedModel
from krscale.methods import method_settings
from krscale.setup.methods import methods_of
from krscale.setup.tap_reading import fit_probes, read_logits
from krscale.training.checkpoint import read_tensors

PROBES_FILE = "probes.pt"
_UNNAMED_LIMIT = 1024
"""`MAX_FEATURES` of probes whose files are named by the grid alone; other limits are added."""


@dataclass(frozen=True)
class _Gains:
    """What is stored for a grid beside its probes.

    Attributes:
        information_gain: Gain of each tap, from the validation split.
    """

    information_gain: tuple[Accuracy, ...]


def probe_grid(experiment: Experiment) -> int:
    """Return the grid on which an experiment's probes read the teacher's taps.

    If no method learns from taps other than the classifier, the probes do not matter, and this is
    1, the grid of the probes that every teacher has.
    """
    methods = methods_of(experiment)
    used = any("probe_grid" in method_settings(name) for name in methods)
    return experiment.distill.probe_grid if used else 1


def grid_name(grid: int) -> str:
    """Return the part of file names that identifies a grid of more than one cell.

    The grid of each tap follows from the requested grid and from the limit on the numbers that a
    probe reads, so the name contains both.

    Example:
        >>> grid_name(4)
        '4'
    """
    limit = limits.MAX_FEATURES
    return str(grid) if limit == _UNNAMED_LIMIT else f"{grid}-of-{limit}"


def probes_file(folder: Path, grid: int) -> Path:
    """Return the file of a stored teacher's probes."""
    return folder / (PROBES_FILE if grid == 1 else f"probes-grid-{grid_name(grid)}.pt")


def gains_file(folder: Path, grid: int) -> Path:
    """Return the file with the gains of probes on a grid of more than one cell."""
    return folder / f"gains-grid-{grid_name(grid)}.json"


def save_probes(folder: Path, probes: Probes) -> None:
    """Save probes, with a digest beside them."""
    content = {
        "feature_sizes": [linear.in_features for linear in probes.linears],
        "probes": {name: value.cpu() for name, value in probes.state_dict().items()},
    }
    file = probes_file(folder, probes.grid)
    write_atomic(file, lambda temporary: _save(content, temporary))
    write_digest(file)


def _save(content: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # see `save_checkpoint`
        torch.save(content, file)


def load_probes(folder: Path, num_classes: int, grid: int, rebuild: str) -> Probes:
    """Load probes, frozen.

    Args:
        folder: Folder of the teacher.
        num_classes: Number of classes `K`.
        grid: Grid on which they read the taps.
        rebuild: A sentence for the error on how to rebuild the file.

    Raises:
        DamagedFileError: If the file is missing, or not what was written.
    """
    file = probes_file(folder, grid)
    check_file(file, rebuild)
    state = read_tensors(file)
    with reading(file, rebuild):
        probes = Probes(state["feature_sizes"], num_classes, grid)
        probes.load_state_dict(state["probes"])
    return probes.eval().requires_grad_(False)


def make_probes(
    tapped: TappedModel, dataset: Dataset, device: torch.device, folder: Path, grid: int
) -> None:
    """Fit the probes of a grid and save them with their gains, unless they exist.

    Args:
        tapped: The teacher in eval mode, on the device.
        dataset: Its data.
        device: Device of the teacher.
        folder: Folder of the teacher; no other process may write there.
        grid: The grid, more than 1.
    """
    if gains_file(folder, grid).is_file():
        return
    probes = fit_probes(tapped, dataset, device, grid)
    logits = read_logits(tapped, probes, dataset, "val", device)
    gain = information_gain(logits, torch.tensor(dataset.split("val").labels, device=device))
    save_probes(folder, probes)
    # Written last: if this file exists, the probes are complete.
    write_json(gains_file(folder, grid), {"information_gain": gain.tolist()})


def read_gains(folder: Path, grid: int, num_taps: int, rebuild: str) -> tuple[float, ...]:
    """Return the information gain of every tap, read on a grid of more than one cell.

    Raises:
        UserError: If this grid's probes were never made.
        DamagedFileError: If the file is not what was written.
    """
    file = gains_file(folder, grid)
    if not file.is_file():
        raise UserError(
            f"{folder}: this teacher's taps were never read on a {grid}x{grid} grid; `krscale "
            "teach` does so."
        )
    gain = read_record(file, _Gains, rebuild).information_gain
    if len(gain) != num_taps:
        raise damaged(file, f"information_gain: {len(gain)} values for {num_taps} taps", rebuild)
    return gain
