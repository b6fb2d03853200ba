"""Identify the code of the user's own networks, so that a changed network counts as another one.

The code of krscale's zoo is not examined: `teacher.FORMAT` distinguishes its versions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from krscale.config import Experiment, ModelConfig, StudentConfig, fingerprint, read_record
from krscale.config.networks import LadderStudent
from krscale.files import write_json
from krscale.models.given import is_given
from krscale.models.libraries import is_of_library, reads_files
from krscale.models.preprocessing import input_shape
from krscale.setup.network_builder import Task, build_teacher, builder, shapes_only, student_table
from krscale.setup.own_modules import find_sources, hash_layers, hash_source, is_own
from krscale.setup.weights import from_file, load_teacher_weights
from krscale.storage.folders import present

CODE_FILE = "code.json"
_NUM_PROBED, _SEED = 4, 0
_TOLERANCE = 0.002  # share of the largest output; rounding on other processors differs by far less


@dataclass(frozen=True)
class Code:
    """The code of a network.

    Attributes:
        modules: Hash of the source of every module in which it is written.
        outputs: Its outputs for fixed inputs, which show what the source does not: files that it
            reads, modules without source. Empty if they differ each time.
        layers: Hash of the layers of a student that was given as an object (`hash_layers`), for
            changes that neither of the others shows; empty for other networks, and if it differs
            each time.
    """

    modules: dict[str, str] = field(default_factory=dict)
    outputs: tuple[float, ...] = ()
    layers: str = ""

    def key(self) -> dict[str, Any]:
        """Return what the code adds to a teacher's fingerprint: nothing for networks of the zoo.

        The outputs are not included, since other processors round differently; see `kept_folder`.
        """
        return {"code": fingerprint(self.modules)} if self.modules or self.outputs else {}


def read_code(experiment: Experiment, task: Task) -> Code:
    """Return the current code of an experiment's teacher.

    Args:
        experiment: The experiment that names the teacher.
        task: The data that it is built for.
    """
    teacher = experiment.teacher

    def with_weights() -> nn.Module:
        model = build_teacher(experiment, task, fresh=from_file(teacher))
        if teacher.weights:
            load_teacher_weights(experiment, model)
        return model

    empty = partial(shapes_only, teacher, task, "teacher", teacher.width)
    return _read(teacher, empty, with_weights, task)


def read_student_code(config: StudentConfig | LadderStudent, task: Task) -> Code:
    """Return the code of a student.

    Args:
        config: The config table that names the network.
        task: The data that it is built for.
    """
    where, width = student_table(config), config.width if isinstance(config, LadderStudent) else 1
    empty = partial(shapes_only, config, task, where, width)
    code = _read(config, empty, partial(builder(config, task, where), width), task)
    if not is_given(config.model):
        return code
    layers, again = hash_layers(empty()), hash_layers(empty())
    return replace(code, layers=layers if layers == again else "")


def compare_code(before: Code, now: Code) -> str:
    """Return which parts differ, as the end of a sentence; empty if none does."""
    names = sorted(before.modules.keys() | now.modules.keys())
    other = [name for name in names if before.modules.get(name) != now.modules.get(name)]
    if other:
        return f"module{'s' * (len(other) > 1)} {', '.join(other)}"
    if before.layers and now.layers and before.layers != now.layers:
        return "its layers, their settings, or the code of its classes"
    if not before.outputs or not now.outputs:  # no comparable outputs
        return ""
    scale = max(map(abs, (*before.outputs, *now.outputs)))
    pairs = zip(before.outputs, now.outputs, strict=False)
    far = any(abs(one - two) > _TOLERANCE * scale for one, two in pairs)
    if far or len(before.outputs) != len(now.outputs):
        return (
            "it answers otherwise to the same inputs, although the source that can be read is the "
            "same (a file that it reads may have changed)"
        )
    return ""


def kept_folder(
    plain: Path, coded: Callable[[int], Path], code: Code, fits: Callable[[Path], bool]
) -> Path:
    """Return the folder of a stored teacher, or the one in which to store it.

    Teachers with the same source may differ in a file that they read. Their folders are numbered,
    and the one whose record agrees with the current code is used.

    Args:
        plain: Folder used by versions of krscale that did not examine code.
        coded: Maps a number, from 0, to the folder used since then.
        code: The current code.
        fits: Returns whether the teacher in a folder still gives the same results; called once for
            an older one.
    """
    if not code.key():
        return plain
    for number in count():
        if not present(coded(number)):
            break
        if _agrees(coded(number), code, fits):
            return coded(number)
    return plain if present(plain) and _agrees(plain, code, fits) else coded(number)


def _agrees(folder: Path, code: Code, fits: Callable[[Path], bool]) -> bool:
    """Whether a stored teacher has this code; if it has no record but fits, the record is added."""
    record = folder / CODE_FILE
    if not record.exists():
        if not fits(folder):
            return False
        write_json(record, asdict(code))
    known = read_record(record, Code, f"Delete the folder {folder}; the teacher is made again.")
    return not compare_code(known, code)


def _read(
    config: ModelConfig, empty: Callable[[], nn.Module], build: Callable[[], nn.Module], task: Task
) -> Code:
    """Return the code of a network.

    Args:
        config: The config table that names the network.
        empty: Builds the network for reading shapes.
        build: Builds the network with its weights.
        task: The data that it is built for.
    """
    name, options = config.model, config.options
    if ":" not in name:
        return Code()
    parts = {type(part).__module__ for part in empty().modules()}
    sources = find_sources({*parts, name.partition(":")[0]})
    known = {module: hash_source(text) for module, text in sources.items() if text is not None}
    # A library's source determines the network, unless it is built from the user's files. The
    # source of other packages does not: imports of installed packages are not followed, and a
    # function that was given as an object may be defined elsewhere.
    is_whole = len(known) == len(sources) and not any(map(is_own, sources))
    is_told = is_whole and is_of_library(name) and not reads_files(name, options)
    return Code(dict(sorted(known.items())), () if is_told else _outputs(build, task))


def _outputs(build: Callable[[], nn.Module], task: Task) -> tuple[float, ...]:
    """Return a network's outputs; empty if they are not reproducible or not finite."""
    first, second = _probe(build, task), _probe(build, task)
    if not all(map(math.isfinite, (*first, *second))) or compare_code(
        Code({}, first), Code({}, second)
    ):
        return ()
    return first


def _probe(build: Callable[[], nn.Module], task: Task) -> tuple[float, ...]:
    with _same_chance():
        model = build().eval()
        inputs = torch.randn(_NUM_PROBED, *input_shape(model, task.image_shape))
        with torch.no_grad():
            return tuple(model(inputs).float().flatten().tolist())


@contextmanager
def _same_chance() -> Iterator[None]:
    """Draw the same random numbers each time, and restore the generators afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(_SEED)
            np.random.seed(_SEED)
            random.seed(_SEED)
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
