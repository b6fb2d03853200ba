"""The peers of `benchmarks/own_folder.py`: their recipes in `benchmarks/peers/`, counted."""

from __future__ import annotations

import ast
import difflib
import hashlib
import io
import tokenize
from dataclasses import dataclass
from pathlib import Path

from parts.measuring import ROOT

PEERS = ROOT / "benchmarks" / "peers"
SHARED = PEERS / "shared"
"""Images, teacher and student, which the user has before any of the peers is used."""


@dataclass(frozen=True)
class Peer:
    """One way from the folder to a student.

    Attributes:
        name: Its folder in `benchmarks/peers/`.
        title: Its name in the table.
        does: The part of the task that it performs, and its search.
        lacks: What it does not do.
        accuracy: Regular expression of the test accuracy in its output; the last match counts.
        scale: Factor from the printed number to a share.
        needs: File of a cloned repository that its commands run.
        stand_in: Program of `benchmarks/parts/` that is run if that file could not be cloned.
        stand_in_trains: Whether the stand-in runs the whole training, so that it may be timed.
    """

    name: str
    title: str
    does: str
    lacks: str
    accuracy: str
    scale: float = 1.0
    needs: str = ""
    stand_in: str = ""
    stand_in_trains: bool = True

    @property
    def folder(self) -> Path:
        """Folder of its recipe."""
        return PEERS / self.name

    @property
    def files(self) -> list[Path]:
        """Files that the user writes: configuration and code."""
        return sorted(path for path in self.folder.iterdir() if path.suffix != ".sh")

    def commands(self, name: str) -> list[str]:
        """Return the commands of `install` or `run`, a continued line as one."""
        return commands_of((self.folder / f"{name}.sh").read_text(encoding="utf-8"))

    def count(self) -> dict[str, int]:
        """Count what the user types: commands, their words, lines of configuration and code."""
        lines = {"config": 0, "code": 0}
        for path in self.files:
            kind = "code" if path.suffix == ".py" else "config"
            lines[kind] += len(own_lines(path))
        typed = [*self.commands("install"), *self.commands("run")]
        return {
            "commands": len(typed),
            "words": sum(len(command.split()) for command in typed),
            "config_lines": lines["config"],
            "code_lines": lines["code"],
        }

    def digest(self) -> str:
        """Return the digest of the recipe and of the files that all peers share."""
        content = hashlib.sha256()
        for path in sorted([*self.folder.iterdir(), *SHARED.iterdir()]):
            if path.is_file():
                content.update(path.name.encode() + path.read_bytes())
        return content.hexdigest()[:16]


def commands_of(text: str) -> list[str]:
    r"""Return the commands of a shell script, without comments.

    >>> commands_of("# first\ngit clone x\npython a.py \\\n    --b 1\n")
    ['git clone x', 'python a.py --b 1']
    """
    lines = text.replace("\\\n", " ").splitlines()
    typed = (" ".join(line.split()) for line in lines)
    return [line for line in typed if line and not line.startswith("#")]


def own_lines(path: Path) -> list[str]:
    """Return the lines of a file except blank ones, comments and docstrings."""
    text = path.read_text(encoding="utf-8")
    left_out = _in_docstrings(text) if path.suffix == ".py" else set()
    numbered = enumerate(text.splitlines(), start=1)
    kept = [line for number, line in numbered if number not in left_out]
    return [line for line in kept if line.strip() and not line.lstrip().startswith("#")]


def added_lines(before: Path, after: Path) -> list[str]:
    """Return the lines of the program `after` that the program `before` does not have."""
    found = difflib.unified_diff(own_lines(before), own_lines(after), n=0, lineterm="")
    return [line[1:] for line in found if line.startswith("+") and not line.startswith("+++")]


def _in_docstrings(text: str) -> set[int]:
    """Return the numbers of all lines of docstrings, and of comments within expressions."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        holds = ast.Module | ast.ClassDef | ast.FunctionDef
        if isinstance(node, holds) and ast.get_docstring(node) is not None:
            first = node.body[0]
            lines.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    alone = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    return lines | {n for n in alone if text.splitlines()[n - 1].lstrip().startswith("#")}
