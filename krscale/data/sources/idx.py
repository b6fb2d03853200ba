"""The source `idx`: the files in which MNIST and its relatives are distributed."""

from __future__ import annotations

import gzip
import math
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from krscale.config import DataConfig
from krscale.data.reading.arrays import Array, Arrays, source_data
from krscale.data.reading.hidden_splits import refuse_unread
from krscale.data.reading.own_files import (
    OTHER_NAMES,
    existing_path,
    files_identity,
    own_splits,
    refuse_two_names,
)
from krscale.data.reading.unpacking import refuse_bomb
from krscale.data.source import Description, Report, SourceData, SplitName
from krscale.errors import UserError, utf8_text
from krscale.foreign import parsing, read_bounded, regular

_SPLITS: Mapping[str, SplitName] = {**OTHER_NAMES, "t10k": "test"}
_NAME = re.compile(
    rf"(?:(?P<set>[^.].*)-)?(?P<split>{'|'.join(_SPLITS)})-"
    r"(?P<kind>images(?=[-.]idx3)|labels(?=[-.]idx1))(?P<dash>[-.])idx[13](?P<dot>[-.])ubyte"
    r"(?P<packed>\.gz)?"
)
"""Names of files of MNIST, and of EMNIST, which start with the name of one of its six sets.

Some copies have a dot where the originals have a dash.
"""
_LIKE = re.compile(
    r"(?P<start>[^.].*)-(?:images[-.]idx3|labels[-.]idx1)[-.]ubyte(?:\.gz)?", re.IGNORECASE
)
"""The same with any word for the split, in any case."""
INSIDE = "raw"
"""The folder of torchvision's files, inside a folder named after the data set."""
WANTED = (
    "a folder with train-images-idx3-ubyte and train-labels-idx1-ubyte (t10k-... likewise; a name "
    "may stand before, as in emnist-letters-train-...), with or without .gz, or one of these files"
)
_MAPPING, _MOST_OF_A_MAPPING = "mapping.txt", 2**20
_RATIO = 1100  # deflate compresses by a factor of at most 1032
_GZIP = b"\x1f\x8b"
_UINT8 = 8  # type code in the third byte of a file


class Idx:
    """Arrays of bytes preceded by their shape: LeCun, Cortes and Burges' format of MNIST."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.path = existing_path(config, WANTED)
        self.files = _find(self.path)
        self.passed = _passed_over(self.files)
        refuse_unread(self.passed, self.files, str(self.path))
        self.mapping = _mapping(self.files["train"][0])

    @property
    def own_splits(self) -> tuple[SplitName, ...]:
        """Return the splits that have files of their own."""
        return own_splits(self.files)

    def identity(self) -> Mapping[str, Any]:
        """Return settings, and name, size and time of every file."""
        files = [str(file) for pair in self.files.values() for file in pair]
        if self.mapping:
            files.append(str(self.mapping))
        root = self.path.parent if self.path.is_file() else self.path
        return files_identity(self.config, root, files)

    def describe(self) -> Description | None:
        """Return None: reading takes no longer than describing."""
        return None

    def read(self, report: Report) -> SourceData:
        """Return the arrays."""
        found: dict[SplitName, Arrays] = {}
        names = tuple(_names(self.mapping)) if self.mapping else ()
        for number, (split, (images, labels)) in enumerate(self.files.items(), start=1):
            found[split] = Arrays(_read(images, 3), _read(labels, 1), str(images), names)
            report(number, len(self.files))
        data = source_data(found, self.config, str(self.path))
        listed = ", ".join(map(utf8_text, list(self.passed)[:10]))
        listed += ", ..." if len(self.passed) > 10 else ""
        notes = (f"{self.path}: files that were passed over: {listed}.",) if self.passed else ()
        return replace(data, notes=(*notes, *data.notes))


def _find(path: Path) -> dict[SplitName, tuple[Path, Path]]:
    """Return images and labels of every split of one data set."""
    named = _NAME.fullmatch(path.name) if path.is_file() else None
    sets = _sets(path.parent if path.is_file() else path, named)
    if not sets and (path / INSIDE).is_dir():
        sets = _sets(path / INSIDE)
    if path.is_file():
        sets = {named["set"] or "": sets[named["set"] or ""]} if named else {}
    if not sets:
        raise UserError(f"data.path: {path}: no such files; expected {WANTED}.")
    if len(sets) > 1:
        listed = ", ".join(sorted(_some(files).name for files in sets.values()))
        raise UserError(
            f"data.path: {path}: files of {len(sets)} data sets; name one file of yours: {listed}."
        )
    return _pairs(path, *sets.values())


def _sets(
    folder: Path, like: re.Match[str] | None = None
) -> dict[str, dict[tuple[str, str], Path]]:
    """Return the files of a folder, by data set, then by the word for the split and the kind.

    Args:
        folder: The folder.
        like: The name of one of the files. If a file exists both packed and plain, the one written
            like this name is taken; without a name, the plain one.
    """
    found: dict[str, dict[tuple[str, str], Path]] = {}
    with parsing(f"data.path: {folder}: cannot be listed"):
        # A link to nothing is taken, too: reading it is an error, and its split is not cut anew.
        files = sorted(
            file
            for file in folder.iterdir()
            if file.is_file() or (file.is_symlink() and not file.exists())
        )
    names = [(file, named) for file in files if (named := _NAME.fullmatch(file.name))]
    if like:
        names.sort(key=lambda pair: _form(pair[1]) != _form(like))  # a stable sort
    names.sort(key=lambda pair: not pair[0].is_file())  # links to nothing come last
    for file, named in names:  # plain comes before packed
        of_set = found.setdefault(named["set"] or "", {})
        of_set.setdefault((named["split"], named["kind"]), file)
    return found


def _form(named: re.Match[str]) -> tuple[str | None, ...]:
    """Return how a name is written: its dashes and dots, and whether it is packed."""
    return named["dash"], named["dot"], named["packed"]


def _some(files: Mapping[tuple[str, str], Path]) -> Path:
    """Return the file that represents a data set: its training images, if there are any."""
    return files.get(("train", "images"), next(iter(files.values())))


def _pairs(path: Path, files: Mapping[tuple[str, str], Path]) -> dict[SplitName, tuple[Path, Path]]:
    there = {word for word, _ in files}
    splits = {word: split for word, split in _SPLITS.items() if word in there}
    refuse_two_names(splits, str(path))
    if "train" not in splits.values():
        raise UserError(f"data.path: {path}: no training images; expected {WANTED}.")
    for word in splits:
        pair = [files.get((word, kind)) for kind in ("images", "labels")]
        if None in pair:
            alone = pair[0] or pair[1]
            raise UserError(f"data.path: {alone}: images or labels are missing beside it.")
    return {split: (files[word, "images"], files[word, "labels"]) for word, split in splits.items()}


def _passed_over(files: Mapping[SplitName, tuple[Path, Path]]) -> dict[str, str]:
    """Return the files whose word for the split is not read, with that word: `extra-images-...`."""
    train = files["train"][0]
    named = _NAME.fullmatch(train.name)
    start = f"{named['set']}-" if named and named["set"] else ""
    words = {}
    for name in sorted(file.name for file in train.parent.iterdir() if file.is_file()):
        like = None if _NAME.fullmatch(name) else _LIKE.fullmatch(name)
        if like and like["start"].startswith(start):
            words[name] = like["start"].removeprefix(start)
    return words


def _mapping(train: Path) -> Path | None:
    """Return the file with the class names; each data set of EMNIST has one."""
    named = _NAME.fullmatch(train.name)
    file = train.with_name(f"{named['set']}-{_MAPPING}") if named and named["set"] else None
    return file if file and file.is_file() else None


def _names(mapping: Path) -> list[str]:
    """Return names of the numbers from 0: the characters whose codes follow each number.

    If upper and lower case form one class, it has two characters: `1 65 97` is `Aa`. A number
    without a line (EMNIST's letters begin with 1) is its own name.
    """
    with parsing(f"{mapping}: not lines of a label and codes of characters"):
        text = read_bounded(mapping, _MOST_OF_A_MAPPING).decode("ascii")
        rows = [[int(word) for word in line.split()] for line in text.splitlines() if line.strip()]
        counts = Counter(label for label, *_ in rows)
        if twice := [label for label, count in counts.items() if count > 1]:
            raise ValueError(f"the label {twice[0]} has two lines")
        named = {label: "".join(map(chr, codes)) for label, *codes in rows if 0 <= label < 256}
        if unseen := [label for label, name in named.items() if not name.isprintable()]:
            raise ValueError(f"the characters of {unseen[0]} cannot be printed")
    return [named.get(number) or str(number) for number in range(max(named, default=-1) + 1)]


def _read(path: Path, ndim: int) -> Array:
    packed = path.suffix == ".gz"
    with parsing(f"{path}: not a readable file"):
        size = regular(path).stat().st_size
        with (gzip.open if packed else open)(path, "rb") as file:
            shape = _shape(file.read(4 + 4 * ndim), ndim, path)
            num_values = math.prod(shape)
            if packed:
                refuse_bomb(str(path), size, num_values)
            # Reading one byte more than expected shows whether there are more.
            content = file.read(min(num_values, size * (_RATIO if packed else 1)) + 1)
        if len(content) == num_values:
            return np.frombuffer(content, np.uint8).reshape(shape)
    more = " or more" if len(content) > num_values else ""
    raise UserError(f"{path}: {len(content)} values{more}, its head says {shape}.")


def _shape(head: bytes, ndim: int, path: Path) -> list[int]:
    """Return the shape in the header of a file."""
    if head.startswith(_GZIP):
        raise UserError(f"{path}: it is packed by gzip; the name of such a file ends in .gz.")
    if len(head) < 4 + 4 * ndim or head[:2] != b"\0\0" or head[2] != _UINT8:
        raise UserError(f"{path}: not an IDX file of bytes.")
    if head[3] != ndim:
        raise UserError(f"{path}: {head[3]} axes, expected {ndim}.")
    return list(struct.unpack_from(f">{ndim}I", head, 4))
