"""Find the modules in which the user's own network is written, from their source."""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sys
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

_STDLIB = Path(sysconfig.get_path("stdlib")).resolve()
_SCRIPT = "__main__"
"""A script or notebook. Most of it is not the network, so its source is ignored."""
_INSTALLED = frozenset(("site-packages", "dist-packages"))


def find_sources(names: Iterable[str]) -> dict[str, str | None]:
    """Return the source of modules and of the user's own modules that they import.

    Imports are read from the source, including those inside functions, since an imported constant
    does not show which module it is from. Modules that are found are not imported. Modules of torch
    and of krscale are left out: their versions are recorded with every run.

    Args:
        names: Dotted names of modules; imports are followed only for the user's own.

    Returns:
        The source by name; None if it is not available.
    """
    found: dict[str, str | None] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found or _is_ours(name):
            continue
        module, spec = sys.modules.get(name), _spec(name)
        if module is None and spec is None:
            continue
        found[name] = source = _source(name, module, spec)
        if is_own(name):
            used = [*_imported(name, source, spec), *_homes(module)]
            waiting += [other for other in used if other not in found and is_own(other)]
    return found


def is_own(name: str) -> bool:
    """Whether a module is the user's own, i.e. not from a library, Python, torch or krscale."""
    if _is_ours(name) or name == _SCRIPT:
        return False
    spec, module = _spec(name), sys.modules.get(name)
    file = getattr(module, "__file__", None) or (spec.origin if spec and spec.has_location else "")
    if not file:
        return False
    path = Path(file).resolve()
    return not path.is_relative_to(_STDLIB) and not _INSTALLED.intersection(path.parts)


@lru_cache(maxsize=4096)
def hash_source(source: str) -> str:
    """Return a hash of code that ignores comments and layout, but not strings."""
    try:
        code = repr(_plain(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError):  # e.g. of a module never imported
        code = source
    return hashlib.sha256(code.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def hash_layers(network: nn.Module) -> str:
    """Return a hash of a network's layers and their settings, as its `repr` shows them.

    The hash includes the source of classes that a script or notebook defines, if it is available.
    Outputs for fixed inputs do not show what matters only in training, such as dropout.
    """
    printed = re.sub(r"\b0x[0-9a-fA-F]+", "", _printed(network))  # addresses, e.g. of functions
    kinds = {kind for part in network.modules() for kind in type(part).__mro__}
    written = sorted(filter(None, (_class_source(k) for k in kinds if k.__module__ == _SCRIPT)))
    content = "\0".join((printed, *map(hash_source, written)))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _printed(network: nn.Module) -> str:
    try:
        return repr(network)
    except Exception:  # noqa: BLE001 - it prints values, which a network of shapes alone has not
        return "\0".join(f"{path}: {type(part)}" for path, part in network.named_modules())


def _class_source(kind: type) -> str:
    try:
        return textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):
        return ""


def _plain(node: Any) -> Any:
    """Return a syntax tree as nested tuples that are equal in every version of Python.

    `ast.dump` differs: later versions have more fields, mostly empty, or omit empty ones.
    """
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if name != "type_ignores")
        filled = ((name, value) for name, value in fields if value is not None and value != [])
        is_text = isinstance(node, ast.Constant)
        values = tuple((name, repr(v) if is_text else _plain(v)) for name, v in filled)
        return type(node).__name__, *values
    return tuple(map(_plain, node)) if isinstance(node, list) else node


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] in ("torch", "krscale")


def _spec(name: str) -> ModuleSpec | None:
    """Return a module's spec without importing it or its packages."""
    module = sys.modules.get(name)
    if module is not None:
        return getattr(module, "__spec__", None)
    package = name.rpartition(".")[0]
    path = None
    if package:
        above = _spec(package)
        if above is None or above.submodule_search_locations is None:
            return None
        path = list(above.submodule_search_locations)
    try:
        return PathFinder.find_spec(name, path)
    except (ImportError, ValueError, OSError):
        return None


def _source(name: str, module: ModuleType | None, spec: ModuleSpec | None) -> str | None:
    if name == _SCRIPT:
        return None
    get_source = getattr(spec.loader, "get_source", None) if spec else None
    if get_source is not None and spec is not None:
        try:
            found = get_source(spec.name)
        except (ImportError, OSError, SyntaxError):
            found = None
        if isinstance(found, str):
            return found
    try:
        return inspect.getsource(module) if module is not None else None
    except (OSError, TypeError):
        return None


def _imported(name: str, source: str | None, spec: ModuleSpec | None) -> Iterator[str]:
    """Yield the names that a module imports: modules, and names that may be submodules."""
    try:
        nodes = list(ast.walk(ast.parse(source or "")))
    except (SyntaxError, ValueError, RecursionError):
        return
    is_package = spec is not None and spec.submodule_search_locations is not None
    package = name if is_package else name.rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        elif isinstance(node, ast.ImportFrom):
            try:
                base = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # a relative import outside a package, or above it
                continue
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _homes(module: ModuleType | None) -> Iterator[str]:
    """Yield the modules of a module's values, which may be set without an import statement."""
    for value in list(vars(module).values()) if module is not None else ():
        name = value.__name__ if isinstance(value, ModuleType) else _module_of(value)
        if name in sys.modules:
            yield name


def _module_of(value: object) -> str:
    home = getattr(value, "__module__", None)
    return home if isinstance(home, str) else ""
