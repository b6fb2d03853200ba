"""Check, load and identify the weights that networks come with, before anything trains."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from krscale.config import (
    Experiment,
    LadderStudent,
    ModelConfig,
    StudentConfig,
    TeacherConfig,
)
from krscale.errors import UserError
from krscale.files import sha256
from krscale.models import ZOO, is_pretrained
from krscale.models.preprocessing import preprocessing_of_network
from krscale.models.probing import (
    check_built,
    check_rebuilt,
    check_trainable,
    check_weights_are_finite,
)
from krscale.setup.found_taps import SEARCHED_WIDTH
from krscale.setup.inputs import is_own
from krscale.setup.network_builder import Task, builder, shapes_only, student_table
from krscale.setup.networks import Networks
from krscale.training.checkpoint import check_exists, fit_weights, load_weights

OWN = "own"
"""Value in place of a file: use the weights that the model is built with."""


def check_weights(networks: Networks) -> tuple[str, ...]:
    """Refuse weights of teacher and students that do not fit, before anything trains.

    Returns:
        Notes on what was chosen from a file or dropped.

    Raises:
        UserError: If weights do not fit; the message names the file and all that does not fit.
    """
    experiment = networks.experiment
    notes = _check_teacher(experiment.teacher, networks)
    for student in experiment.ladder.students or (experiment.student,):
        notes += _check_student(student, networks)
    return notes


def _check_student(student: StudentConfig | LadderStudent, networks: Networks) -> tuple[str, ...]:
    where = student_table(student)
    width = student.width if isinstance(student, LadderStudent) else SEARCHED_WIDTH
    weights = student.weights if isinstance(student, LadderStudent) else ""
    notes: tuple[str, ...] = ()
    if student.model not in ZOO:
        built = _built(student, networks, where, width)
        check_built(built, networks.image_shape, where)
        check_trainable(built, networks.image_shape, where)
        two = _two_of_own(student, networks, where, width)
        notes = () if weights else _note_on_own_weights(two, student, where)
    if not isinstance(student, LadderStudent):
        return notes
    _refuse_idle_key(weights, student.weights_key, where)
    if not from_file(student):
        return notes
    network = shapes_only(student, networks, where, width)
    return fit_weights(_path(weights), network, f"{where}.weights", student.weights_key).notes


def _refuse_idle_key(weights: str, key: str, where: str) -> None:
    if key and weights in ("", OWN):
        raise UserError(
            f"{where}.weights_key: {key!r} chooses among the weights of a file, and "
            f"{where}.weights names none."
        )


def _check_teacher(teacher: TeacherConfig, networks: Networks) -> tuple[str, ...]:
    _refuse_idle_key(teacher.weights, teacher.weights_key, "teacher")
    if teacher.model not in ZOO and teacher.weights in ("", OWN):
        built = _built(teacher, networks, "teacher", teacher.width, teacher.seed)
        check_built(built, networks.image_shape, "teacher")
        if not teacher.weights:
            check_trainable(built, networks.image_shape, "teacher")
    two = _two_of_own(teacher, networks, "teacher", teacher.width)
    if not teacher.weights:
        _refuse_to_train_anew(teacher)
        notes = _note_on_own_weights(two, teacher, "teacher")
        return tuple(f"{note}; teacher.weights = 'own' keeps them as they are" for note in notes)
    if teacher.weights == OWN:
        return ()
    network = shapes_only(teacher, networks, "teacher", teacher.width)
    return fit_weights(
        _path(teacher.weights), network, "teacher.weights", teacher.weights_key
    ).notes


def _two_of_own(
    config: ModelConfig, networks: Networks, where: str, width: int
) -> tuple[nn.Module, ...]:
    """Return a network of the user's own, built from two seeds; empty for any other network.

    Raises:
        UserError: If its outputs depend on more than what is saved of it.
    """
    if not is_own(config):
        return ()
    first, second = (_built(config, networks, where, width, seed) for seed in (0, 1))
    check_rebuilt(first, second, networks.image_shape, where)
    return first, second


def from_file(config: TeacherConfig | StudentConfig | LadderStudent) -> bool:
    """Return whether the weights of a network are read from a file."""
    return getattr(config, "weights", "") not in ("", OWN)


def load_teacher_weights(experiment: Experiment, model: nn.Module) -> None:
    """Load the weights that an experiment names into its teacher; `own` keeps the teacher's.

    Raises:
        UserError: If they do not fit, or are not finite.
    """
    teacher = experiment.teacher
    if from_file(teacher):
        load_weights(_path(teacher.weights), model, "teacher.weights", teacher.weights_key)
    check_weights_are_finite(model, "teacher.weights")


def load_student_weights(experiment: Experiment, student: nn.Module) -> None:
    """Load the initial weights of a student that the user defined, if any.

    Raises:
        UserError: If they do not fit, or are not finite.
    """
    own = experiment.own_student
    if own is not None and from_file(own):
        where = f"{student_table(own)}.weights"
        load_weights(_path(own.weights), student, where, own.weights_key)


def weights_identity(experiment: Experiment, task: Task) -> str:
    """Return a hash of the weights that the teacher comes with; empty if it has none.

    Raises:
        UserError: If the file does not exist.
    """
    teacher = experiment.teacher
    if teacher.weights == OWN or (
        not teacher.weights and is_pretrained(teacher.model, teacher.options)
    ):
        return _state_hash(_built(teacher, task, "teacher", teacher.width, teacher.seed))
    if not teacher.weights:
        return ""
    path = _path(teacher.weights)
    check_exists(path, "teacher.weights: ")
    return sha256(path)


def _refuse_to_train_anew(teacher: TeacherConfig) -> None:
    """Refuse to train a teacher that was already trained on these classes, unless requested."""
    options = teacher.options
    known = teacher.model.startswith("hf:") and is_pretrained(teacher.model, options)
    if known and not options.get("new_head"):
        raise UserError(
            f"teacher.weights: {teacher.model} has weights for these classes, and would be "
            "trained anew. teacher.weights = 'own' keeps them; teacher.options = { new_head = true "
            "} trains on from there, { pretrained = false } from the beginning."
        )


def _note_on_own_weights(
    two: Sequence[nn.Module], config: ModelConfig, where: str
) -> tuple[str, ...]:
    """Return a note if a callable seems to load weights, since the seed does not change them.

    Args:
        two: What `_two_of_own` returned.
        config: Of the network.
        where: Its config table.
    """
    if not two:
        return ()
    first, second = two
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    drawn = [(a.numel(), bool(torch.equal(a, b))) for a, b in pairs if a.ndim > 1]
    if sum(count for count, same in drawn if same) * 2 <= sum(count for count, _ in drawn):
        return ()
    return (
        f"{where}: {config.model} gives the same weights whatever the seed, so it seems to load "
        f"some. They will be trained further, on images as "
        f"{preprocessing_of_network(first).describe()} ({where}.preprocessing)",
    )


def _path(weights: str) -> Path:
    return Path(weights).expanduser()


def _built(config: ModelConfig, task: Task, where: str, width: int, seed: int = 0) -> nn.Module:
    """Return a network as it is built, with new weights drawn from a seed.

    Weights that libraries download are left out: they are known to be finite.
    """
    of_library = config.model.partition(":")[0] in ("timm", "torchvision")
    downloaded = of_library and not config.options.get("checkpoint_path")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return builder(config, task, where, fresh=downloaded and where != "teacher")(width)


def _state_hash(model: nn.Module) -> str:
    """Return a hash of names and values of a state dict."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
