"""Which code networks of the user's own are made of, so that a changed one is another network.

Networks of krscale's own zoo are not looked at: `teacher.FORMAT` tells their versions apart.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from krscale.config import Experiment, StudentConfig, fingerprint, read_record
from krscale.config.networks import LadderStudent
from krscale.files import write_json
from krscale.models.given import is_given
from krscale.models.preprocessing import input_shape
from krscale.setup.networks import Task, build_teacher, builder, shapes_only, student_table
from krscale.setup.weights import load_teacher_weights

CODE_FILE = "code.json"
_LIBRARIES = tuple(
    {str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib")}
)
_SCRIPT = "__main__"
"""A script or notebook, most of which is not the network: what it answers is compared instead."""
_NUM_PROBED, _SEED = 4, 0
_TOLERANCE = 0.01  # of the largest output: processors round differently, other code does not
_DIGITS = 2


@dataclass(frozen=True)
class Code:
    """The code of a network.

    Attributes:
        modules: Hash of the source of every module that it is written in.
        outputs: What it answers to fixed inputs, where the source of a module cannot be had.
    """

    modules: dict[str, str] = field(default_factory=dict)
    outputs: tuple[float, ...] = ()

    def key(self) -> dict[str, Any]:
        """Return what it adds to a teacher's fingerprint: nothing for networks of the zoo."""
        if not self.modules and not self.outputs:
            return {}
        largest = max(map(abs, self.outputs), default=1.0) or 1.0
        rounded = [round(value / largest, _DIGITS) for value in self.outputs]
        return {"code": fingerprint([self.modules, rounded])}


def read_code(experiment: Experiment, task: Task) -> Code:
    """Return the code of an experiment's teacher as it is now.

    Args:
        experiment: Names the teacher.
        task: What it is built for.
    """
    teacher = experiment.teacher

    def with_weights() -> nn.Module:
        model = build_teacher(experiment, task)
        if teacher.weights:
            load_teacher_weights(experiment, model)
        return model

    empty = partial(shapes_only, teacher, task, "teacher", teacher.width)
    return _read(teacher.model, empty, with_weights, task)


def read_student_code(config: StudentConfig | LadderStudent, task: Task) -> Code:
    """Return the code of a student.

    Args:
        config: Names it.
        task: What it is built for.
    """
    where, width = student_table(config), config.width if isinstance(config, LadderStudent) else 1
    empty = partial(shapes_only, config, task, where, width)
    return _read(config.model, empty, partial(builder(config, task, where), width), task)


def compare_code(before: Code, now: Code) -> str:
    """Return which modules differ, as the end of a sentence; empty where none does."""
    names = sorted(before.modules.keys() | now.modules.keys())
    other = [name for name in names if before.modules.get(name) != now.modules.get(name)]
    if other:
        return f"module{'s' * (len(other) > 1)} {', '.join(other)}"
    scale = max(map(abs, (*before.outputs, *now.outputs)), default=0.0)
    pairs = zip(before.outputs, now.outputs, strict=False)
    far = any(abs(one - two) > _TOLERANCE * scale for one, two in pairs)
    if far or len(before.outputs) != len(now.outputs):
        return "it answers otherwise to the same inputs (its source cannot be read)"
    return ""


def kept_folder(plain: Path, coded: Path, code: Code, fits: Callable[[Path], bool]) -> Path:
    """Return the folder of a kept teacher: by its code, or the one of an older krscale.

    Args:
        plain: Where a krscale that did not look at code kept it.
        coded: Where it is kept since.
        code: As it is now.
        fits: Whether the teacher in a folder still does what it did; asked once of an older one.
    """
    if coded == plain or coded.exists() or not plain.is_dir():
        return coded
    record = plain / CODE_FILE
    if not record.exists():
        if not fits(plain):
            return coded
        write_json(record, asdict(code))
    known = read_record(record, Code, f"Delete the folder {plain}; the teacher is made again.")
    return coded if compare_code(known, code) else plain


def _read(
    name: str, empty: Callable[[], nn.Module], build: Callable[[], nn.Module], task: Task
) -> Code:
    """Return the code of a network.

    Args:
        name: As the experiment names it.
        empty: Builds it to read shapes off.
        build: Builds it with its weights.
        task: What it is built for.
    """
    if ":" not in name:
        return Code()
    found = _modules(empty(), name.partition(":")[0])
    sources = {module.__name__: _source(module) for module in found}
    known = {module: _hash(text) for module, text in sorted(sources.items()) if text is not None}
    # A function that was given as an object need not be written in the modules of its network.
    whole = len(known) == len(sources) and not is_given(name)
    return Code(known, () if whole else _outputs(build, task))


def _modules(model: nn.Module, named: str) -> set[ModuleType]:
    """Return the modules that define a network's classes, and the user's own that these use."""
    names = {type(part).__module__ for part in model.modules()} | {named}
    found: set[ModuleType] = set()
    waiting = [sys.modules[name] for name in names if name in sys.modules and not _is_ours(name)]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += _used_by(module) if _is_own(module) else ()
    return found


def _used_by(module: ModuleType) -> Iterable[ModuleType]:
    """Yield the user's own modules that a module has imported something from."""
    for value in list(vars(module).values()):
        name = value.__name__ if isinstance(value, ModuleType) else _home(value)
        used = sys.modules.get(name)
        if used is not None and not _is_ours(name) and _is_own(used):
            yield used


def _home(value: object) -> str:
    home = getattr(value, "__module__", None)
    return home if isinstance(home, str) else ""


def _is_ours(name: str) -> bool:
    """Whether a module is torch's or krscale's, whose versions are recorded with every run."""
    return name.partition(".")[0] in ("torch", "krscale")


def _is_own(module: ModuleType) -> bool:
    """Whether a module is the user's own, and not that of a library."""
    file = None if module.__name__ == _SCRIPT else getattr(module, "__file__", None)
    return bool(file) and not str(Path(str(file)).resolve()).startswith(_LIBRARIES)


def _source(module: ModuleType) -> str | None:
    if module.__name__ == _SCRIPT:
        return None
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):
        return None


def _hash(source: str) -> str:
    """Return a hash of code: comments and empty lines make it no other."""
    lines = (line.rstrip() for line in source.splitlines())
    code = "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))
    return hashlib.sha256(code.encode()).hexdigest()[:32]


def _outputs(build: Callable[[], nn.Module], task: Task) -> tuple[float, ...]:
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        model = build().eval()
        inputs = torch.randn(_NUM_PROBED, *input_shape(model, task.image_shape))
    with torch.no_grad():
        return tuple(model(inputs).float().flatten().tolist())
