"""Parts of the documentation's pages: prose, blocks of code, commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
HISTORY = ("log.md", "CHANGELOG.md")
"""Pages about the past, which may show things that no longer exist."""
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
    """All blocks of code, in any language."""
    return [inside for _, inside in _FENCE.findall(text)] + _INDENTED.findall(prose(text))


def commands(text: str) -> list[list[str]]:
    """Every krscale command that a page shows, as the arguments of `krscale`.

    A command is the start of a line in a block of code, after a prompt if there is one, the ARGS of
    `make run ARGS=...`, or what follows `ray job submit ... --`. In prose, a command is inline
    code; one without arguments is returned as `NAME --help`. The placeholder `COMMAND` is left out.
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
