"""What is kept of a teacher beside its weights, for those who need not load it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from krscale.config import read_record
from krscale.config.records import Accuracy, Count, NotNegative
from krscale.files import damaged

FACTS_FILE = "facts.json"


@dataclass(frozen=True)
class TeacherFacts:
    """What other modules need of a teacher, without loading it.

    A file with a value that cannot be, such as an accuracy above 1, is refused when it is read.

    Attributes:
        fingerprint: Of all that it is made from, and of its weights, so that stores of a teacher
            that is made again are its own; without the weights in what an older krscale kept.
        data_fingerprint: Of the data its probes were fitted on.
        model: Name of the architecture.
        width: Its capacity dial.
        num_parameters: Trainable and fixed parameters.
        flops: Of one forward of one image, 2 per multiply-add.
        val_accuracy: Share of the validation split it gets right.
        taps: Module paths of its taps; the classifier is a further, last tap.
        stage_ends: Number of the last tap of every stage.
        information_gain: One per tap, from the validation split; of probes on the experiment's
            grid where `prepare_teacher` or `find_teacher` returns it.
        layer_sizes: Parameters of the layers of every tap.
        histograms: `[D][bins]`, distribution of the weights of every tap.
        faults: What spoke against it when it was measured, a phrase each; None in what an older
            krscale kept without measuring it, until `prepare_teacher` does.
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
    """Read what is kept of a teacher beside its weights.

    Raises:
        DamagedFileError: If it is not what was written, or cannot be.
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
    """Say how the folder of a teacher that is damaged comes back."""
    return f"Delete the folder {folder}; `krscale teach` makes the teacher again."
