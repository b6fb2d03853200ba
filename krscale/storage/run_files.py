"""The files of a run: which of them are sent to a storage, in which order, and in which form.

A file is sent after the files that it refers to, but read before they are sent. So at each moment
the storage holds a state that a crash could have left on a disk.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from krscale.errors import StorageError
from krscale.files import new_folder

UNFINISHED = "unfinished"
"""Folder of checkpoints of trials."""
CHECKPOINT = "checkpoint"
"""Folder of the checkpoint of a single training, in the folder of its run or of a refit."""
ARCHIVE = ".tar"
"""Suffix of a checkpoint's object: one for all its files, so that it is never incomplete."""
ORIGIN = "origin.json"
"""File that records what a run is bound to: its data, and the weights of its teacher."""
_FIRST = ("experiment.json", "environment.json", ORIGIN)
_APPENDED = (".log", ".jsonl")
_LOCAL = (".lock", ".sign")
NOT_SENT = ("tune", "train")
"""Ray's own folders in a run."""
_PICKED = ("export", "refit")
"""Folders of a run in which `krscale pick` makes folders, even where the run is only read."""
_REPORTED = ("report.html", "curve.csv")
"""Files of a run that `krscale report` alone writes, even where the run is only read. They stay on
the machine that made them, as an older one could replace a newer one."""
Stamp = tuple[int, int]
"""Size of a file, and its time of modification in nanoseconds."""


def rank(name: str) -> int:
    """Return the place of a file in the order; from 2 on, files are read before any is sent.

    Example:
        >>> names = ["curve.json", "journal.log", "tracking/state.json", "tracking/spool.jsonl",
        ...          "students/kr/1-4/seed-1.safetensors", "experiment.json"]
        >>> [rank(name) for name in names]
        [5, 4, 3, 2, 1, 0]
    """
    folder, _, rest = name.partition("/")
    if is_archive(name):
        return 1
    if not rest:
        return 0 if name in _FIRST else 4 if name == "journal.log" else 5
    if folder == "tracking":
        return 2 if name.endswith(_APPENDED) else 3
    return 1


def is_sent(name: str) -> bool:
    """Whether an object of this name belongs to the copy of a run folder.

    Example:
        >>> is_sent("journal.log"), is_sent("train/checkpoint_1/state.pt"), is_sent(".driver.json")
        (True, False, False)
    """
    parts = name.split("/")
    hidden = any(part.startswith(".") for part in parts)
    local = name.endswith(_LOCAL) or name in _REPORTED
    return not (hidden or local or parts[-1] == "lock" or parts[0] in NOT_SENT)


def is_archive(name: str) -> bool:
    """Whether an object is a whole checkpoint.

    Example:
        >>> is_archive("unfinished/kr/1-4/trial-7.tar"), is_archive("checkpoint.tar")
        (True, True)
        >>> is_archive("refit/5f0c/checkpoint.tar"), is_archive("students/kr/checkpoint.tar")
        (True, False)
    """
    if not name.endswith(ARCHIVE):
        return False
    folder, *within = name.removesuffix(ARCHIVE).split("/")
    if folder == "refit":
        return within[1:] == [CHECKPOINT]
    return bool(within) if folder == UNFINISHED else folder == CHECKPOINT and not within


def archive_of(name: str) -> str:
    """Return the name of the archive that contains a file of a run; empty if there is none.

    Example:
        >>> archive_of("checkpoint/state.pt"), archive_of("student.safetensors")
        ('checkpoint.tar', '')
    """
    archive = name.rpartition("/")[0] + ARCHIVE
    return archive if is_archive(archive) else ""


def picked_folder(name: str) -> str:
    """Return the folder of an export or of a refit that a file of a run is in; empty if none.

    Example:
        >>> picked_folder("export/1-4-kr/student.onnx"), picked_folder("students/kr/1-4")
        ('export/1-4-kr', '')
    """
    kind, _, rest = name.partition("/")
    each, separator, _ = rest.partition("/")
    return f"{kind}/{each}" if kind in _PICKED and separator else ""


def stamps(folder: Path) -> dict[str, Stamp]:
    """Return the stamps of the files of a run that are sent, by the name of their object."""
    found = {}
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if not is_sent(name):
            continue
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue  # removed meanwhile
        if archive := archive_of(name):
            if path.name != "manifest.json":
                continue  # the checkpoint is sent as one object
            name = archive
        found[name] = (stat.st_size, stat.st_mtime_ns)
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_symlink():
            continue
        if path.is_dir():
            if not path.name.startswith("."):
                yield from _walk(path)
        else:
            yield path


def content_of(folder: Path, name: str) -> bytes:
    """Return the content of the object of a name: only whole lines of a file that grows."""
    if is_archive(name):
        return pack(folder / name.removesuffix(ARCHIVE))
    content = (folder / name).read_bytes()
    return content[: content.rfind(b"\n") + 1] if name.endswith(_APPENDED) else content


def pack(path: Path) -> bytes:
    """Return the files of a folder as one archive."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for file in sorted(path.iterdir()):
            if file.is_file():
                archive.add(file, arcname=file.name)
    return packed.getvalue()


def unpack(content: bytes, path: Path, where: str) -> None:
    """Write the files of an archive as a folder, whole or not at all.

    Raises:
        StorageError: If it is not an archive of plain files.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive, new_folder(path) as folder:
            for member in archive.getmembers():
                found = archive.extractfile(member) if member.isfile() else None
                if found is None or "/" in member.name or member.name.startswith("."):
                    raise tarfile.TarError(f"it holds {member.name}")
                (folder / member.name).write_bytes(found.read())
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise StorageError(f"{where}: not a checkpoint that was sent ({error}).") from None
