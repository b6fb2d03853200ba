"""Facts that are stored beside a teacher's weights, for use without loading the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from krscale.config import read_record
from krscale.config.records import Accuracy, Count, NotNegative
from krscale.files import damaged

FACTS_FILE = "facts.json"


@dataclass(frozen=True)
class TeacherFacts:
    """Facts on a teacher that other modules need without loading it.

    A file with an impossible value, such as an accuracy above 1, is refused when it is read.

    Attributes:
        fingerprint: Fingerprint of all that it is made from and of its weights, so that a teacher
            that is made again gets its own stores. Older versions did not include the weights.
        data_fingerprint: Fingerprint of the data on which its probes were fitted.
        model: Name of the architecture.
        width: Its capacity dial.
        num_parameters: Number of trainable and fixed parameters.
        flops: FLOPs of one forward pass of one image, 2 per multiply-add.
        val_accuracy: Share of the validation split that it classifies correctly.
        taps: Module paths of its taps; the classifier is a further, last tap.
        stage_ends: Number of the last tap of every stage.
        information_gain: Gain of each tap, from the validation split. If returned by
            `prepare_teacher` or `find_teacher`, it is that of probes on the experiment's grid.
        layer_sizes: Number of parameters of the layers of every tap.
        histograms: `[D][bins]`, distribution of the weights of every tap.
        faults: Faults that were found when it was measured, one phrase each. None if an older
            version stored it without measuring them, until `prepare_teacher` does so.
    """

    fingerprint: str
    data_fingerprint: str
    model: str
    width: int
    num_parameters: Count
    flops: Count
    val_accuracy: Accuracy
    taps: tuple[str, ...]
    stage_ends: tuple[int, ...]
    information_gain: tuple[Accuracy, ...]
    layer_sizes: tuple[NotNegative, ...]
    histograms: tuple[tuple[NotNegative, ...], ...]
    faults: tuple[str, ...] | None = None


def read_facts(folder: Path) -> TeacherFacts:
    """Read the facts that are stored beside a teacher's weights.

    Raises:
        DamagedFileError: If the file is not what was written, or has impossible values.
    """
    path, rebuild = folder / FACTS_FILE, rebuild_teacher(folder)
    facts = read_record(path, TeacherFacts, rebuild)
    num_taps = len(facts.taps) + 1  # the classifier is a tap, too
    for name in ("information_gain", "layer_sizes", "histograms"):
        number = len(getattr(facts, name))
        if number != num_taps:
            raise damaged(path, f"{name}: {number} values for {num_taps} taps", rebuild)
    return facts


def rebuild_teacher(folder: Path) -> str:
    """Return advice on how to rebuild the damaged folder of a teacher."""
    return f"Delete the folder {folder}; `krscale teach` makes the teacher again."
