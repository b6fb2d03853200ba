"""What the pages of the documentation hold: prose, blocks of code, commands, experiments."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
HISTORY = ("log.md", "CHANGELOG.md")
"""They speak of what was; what they show need not exist any more."""
CURRENT = [document for document in DOCUMENTS if document.name not in HISTORY]

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", flags=re.M | re.S)
_INDENTED = re.compile(r"(?:^ {4}\S.*\n)+", flags=re.M)
_INLINE = re.compile(r"(?<!`)`((?:krscale|python -m krscale)[ .][^`]+)`")
_COMMAND = re.compile(r"\b(?:python -m krscale\.(\w+)|(?:python -m )?krscale(?= ))(.*)")


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return _FENCE.sub("", text)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [inside for named, inside in _FENCE.findall(text) if named == language]


def code(text: str) -> list[str]:
    """All blocks of code, of whatever language."""
    return [inside for _, inside in _FENCE.findall(text)] + _INDENTED.findall(prose(text))


def commands(text: str) -> list[list[str]]:
    """Every krscale command that a page shows, as the arguments of `krscale`.

    Commands are what a line of a block of code begins with, after a prompt, and what stands behind
    `make run ARGS=...` and `ray job submit ... --`. In prose they are inline code; one that is
    named there without arguments is `NAME --help`, and `COMMAND` stands for any.
    """
    return list(_commands(text))


def _commands(text: str) -> Iterator[list[str]]:
    for block in code(text):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            yield from _of_line(line.strip().removeprefix("$ "))
    for line in _INLINE.findall(prose(text).replace("\n", " ")):
        for arguments in _of_line(line):
            yield [*arguments, "--help"] if len(arguments) == 1 else arguments


def _of_line(line: str) -> Iterator[list[str]]:
    if line.startswith("make run"):
        inside = re.search(r'ARGS="(.*)"', line)
        yield ["tune", *shlex.split(inside[1] if inside else "", comments=True)]
        return
    submitted = line.partition(" -- ")[2] if line.startswith("ray job submit") else line
    if not submitted.startswith(("krscale", "python -m krscale")):
        return
    if (found := _COMMAND.match(submitted)) is not None:
        module, rest = found.groups()
        arguments = [*([module] if module else []), *shlex.split(rest, comments=True)]
        if arguments[0] != "COMMAND":
            yield arguments
