"""Turn a teacher and students given as objects or text into the tables of an experiment."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from krscale.config import LadderConfig, StudentConfig, TeacherConfig
from krscale.errors import UserError
from krscale.models import ZOO
from krscale.models.arguments import ALIASES
from krscale.models.given import KIND, Builder, Copies
from krscale.setup.weights import OWN

Table = dict[str, Any]


@dataclass(frozen=True)
class GivenNetworks:
    """Given networks in the form that an experiment uses.

    Attributes:
        tables: Sections of an experiment, by name.
        builders: Builders of the networks that are named `object:NAME` there.
    """

    tables: Table = field(default_factory=dict)
    builders: dict[str, Builder] = field(default_factory=dict)


def read_teacher(teacher: Any) -> GivenNetworks:
    """Return the section `teacher`.

    Args:
        teacher: A trained network; a callable that returns it; the name of a model; a
            `TeacherConfig`, or a mapping of its fields.

    Raises:
        UserError: If it is none of these, or cannot be copied.
    """
    if isinstance(teacher, TeacherConfig):
        return GivenNetworks({"teacher": teacher.model_dump(exclude_unset=True)})
    if isinstance(teacher, Mapping):
        return GivenNetworks({"teacher": dict(teacher)})
    builders: dict[str, Builder] = {}
    if isinstance(teacher, nn.Module):
        name = f"{KIND}:teacher.{type(teacher).__name__}"
        builders[name] = Copies(teacher, "teacher")
        table: Table = {"model": name, "options": {}}
    else:
        table = _of_one_size(teacher, "teacher", "teacher", builders)
    if table["model"] not in ZOO:
        table["weights"] = OWN
    return GivenNetworks({"teacher": table}, builders)


def read_students(students: Any) -> GivenNetworks:
    """Return the sections `student` and `ladder`, or the one of them that the students determine.

    Args:
        students: A callable from a width to a network, or the name of a model with a width; a
            mapping of names to callables, names of models, or fields of a `LadderStudent`; a
            `StudentConfig` or `LadderConfig`.

    Raises:
        UserError: If it is none of these.
    """
    if isinstance(students, LadderConfig):
        return GivenNetworks({"ladder": students.model_dump(exclude_unset=True)})
    if isinstance(students, StudentConfig):
        return GivenNetworks({"student": students.model_dump(exclude_unset=True)})
    builders: dict[str, Builder] = {}
    if not isinstance(students, Mapping):
        return GivenNetworks({"student": _table(students, "students", builders)}, builders)
    if not students:
        raise UserError("students: at least one is needed.")
    listed = [
        {**_student(value, str(name), builders), "name": str(name)}
        for name, value in students.items()
    ]
    return GivenNetworks({"ladder": {"students": listed}}, builders)


def _student(value: Any, name: str, builders: dict[str, Builder]) -> Table:
    if isinstance(value, StudentConfig):
        value = value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        if value.get("name", name) != name:
            other = value["name"]
            raise UserError(f"students[{name!r}]: name: {other!r} is another one; give it once.")
        return dict(value)
    return _of_one_size(value, f"students[{name!r}]", name, builders)


def _of_one_size(value: Any, where: str, role: str, builders: dict[str, Builder]) -> Table:
    """Return the fields of a model that is built without a width, or with its own default."""
    if not callable(value) or isinstance(value, nn.Module):
        return _table(value, where, builders, role)
    width = _parameters(value).get("width")
    if _only_width(value) or (width is not None and width.default is width.empty):
        raise UserError(
            f"{where}: {_name_of(value)} needs a width, and this network has one size: give a "
            "function without arguments that returns it."
        )
    if width is not None and type(width.default) is int and width.default >= 1:
        return {**_table(value, where, builders, role), "width": width.default}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in _parameters(value).values())
    if width is not None or takes_any:
        value = _WithoutWidth(value)
    return _table(value, where, builders, role)


def _table(value: Any, where: str, builders: dict[str, Builder], role: str = "") -> Table:
    """Return the fields of a model; if it has no importable name, add its builder to `builders`."""
    if isinstance(value, str):
        return {"model": value} if value in ZOO else {"model": value, "options": {}}
    if isinstance(value, nn.Module):
        raise UserError(
            f"{where}: a network that is built already ({type(value).__name__}); give its class, "
            "or a function that returns it, so that every training begins with a new one."
        )
    if not callable(value):
        raise UserError(
            f"{where}: {type(value).__name__}; expected a class or function that builds the "
            "network, or the name of a model: a zoo name, 'timm:NAME', 'package.module:callable'."
        )
    if name := _importable(value):
        return {"model": name, "options": {}}
    name = f"{KIND}:{role or where}.{_name_of(value)}"
    builders[name] = _by_width(value)
    return {"model": name, "options": {}}


def _importable(value: Callable[..., Any]) -> str:
    """Return `package.module:callable` if it leads to this very object; else an empty text."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if not module or module == "__main__" or not name.isidentifier() or _only_width(value):
        return ""
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return ""
    return f"{module}:{name}" if found is value else ""


def _only_width(value: Callable[..., Any]) -> str:
    """Return the only required argument of a callable, if krscale has no value for its name."""
    parameters = _parameters(value).values()
    known = set(_flat(ALIASES.values()))
    needed = [p for p in parameters if p.default is p.empty and p.kind not in _VARIABLE]
    names = {p.name for p in parameters}
    if len(needed) != 1 or needed[0].name in known or "width" in names:
        return ""
    return needed[0].name


def _parameters(value: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a callable; none if it has no readable signature."""
    try:
        return inspect.signature(value).parameters
    except (TypeError, ValueError):
        return {}


def _name_of(value: Callable[..., Any]) -> str:
    return str(getattr(value, "__name__", type(value).__name__)).strip("<>_")


_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _flat(groups: Iterable[Iterable[str]]) -> Iterable[str]:
    return (name for group in groups for name in group)


@dataclass(frozen=True)
class _ByWidth:
    """A callable whose only argument is the width, under a name that krscale does not use."""

    build: Callable[[int], nn.Module]

    def __call__(self, width: int) -> nn.Module:
        return self.build(width)


@dataclass(frozen=True)
class _WithoutWidth:
    """A callable with its own default width; it receives only classes and channels."""

    build: Callable[..., nn.Module]

    @property
    def __name__(self) -> str:
        return _name_of(self.build)

    @property
    def __signature__(self) -> inspect.Signature:
        signature = inspect.signature(self.build)
        kept = [p for p in signature.parameters.values() if p.name != "width"]
        return signature.replace(parameters=kept)

    def __call__(self, width: int = 0, **arguments: Any) -> nn.Module:
        return self.build(**arguments)


def _by_width(value: Callable[..., Any]) -> Builder:
    return _ByWidth(value) if _only_width(value) else value
