"""Cache folders: sent when they are finished, and fetched by each machine that needs them.

The files are sent first, then an index with the SHA-256 of each. A folder without an index counts
as missing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from krscale.errors import StorageError
from krscale.files import new_folder, read_json, reading, sha256, write_json
from krscale.storage.address import here, is_plain, place_of
from krscale.storage.objects import Objects
from krscale.storage.room import fetch_lock, hold, make_room, record_of, unfetched

_AT_ONCE = 8
"""Number of objects that are transferred at the same time."""


@dataclass(frozen=True)
class _File:
    num_bytes: int
    sha256: str


def present(path: Path) -> bool:
    """Whether a cache folder is present; it is fetched first if another machine has sent it.

    A folder that this machine began to make and has not sent is replaced by one that another
    machine has sent: an interrupted store is incomplete but already has its final name.

    Args:
        path: The folder. Outside every working folder, only the disk is checked.

    Raises:
        StorageError: If the storage cannot be read, or its content is not what was sent.
    """
    place = place_of(path)
    if place is None:
        return path.is_dir()
    path.parent.mkdir(parents=True, exist_ok=True)
    hold(path)  # before the check: a process that makes room must not remove it in between
    return _is_whole(path) or _fetch(path, *place) or path.is_dir()


def fetched(path: Path | str, storage: str) -> Path:
    """Return the path of a cache folder on this machine; it is fetched if it is missing.

    Args:
        path: Its path on the machine that made it.
        storage: The URI of the storage.

    Raises:
        StorageError: If the storage cannot be read, or no longer has the folder.
    """
    found = here(path, storage)
    if not present(found):
        raise StorageError(f"{found}: {storage} has lost it; `krscale teach` helps.")
    return found


def publish(path: Path) -> bool:
    """Send those files of a finished cache folder that the storage does not have.

    If another machine has sent other files since this one looked for the folder and began to make
    it, the first one counts: the folder is replaced, so that all runs use the same files.

    Other folders that the storage has are removed here if this machine exceeds its limit.

    Args:
        path: The folder; nothing is done if it is outside every working folder.

    Returns:
        Whether the folder is as it was; False if it was replaced.

    Raises:
        StorageError: If the storage cannot be written, or not be read.
    """
    place = place_of(path)
    if place is None:
        return True
    uri, key = place
    objects, record = Objects.open(uri), record_of(path)
    hold(path)
    files = _files(path, record)
    there = _index(objects, key) or {}
    if there and there != files and not record.is_file():
        _fetch(path, uri, key)
        return False
    changed = [name for name in files if there.get(name) != files[name]]
    if changed:
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(lambda name: objects.upload(f"{key}/{name}", path / name), changed))
    if there != files:
        content = {"files": {name: asdict(file) for name, file in files.items()}}
        objects.write(_index_key(key), (json.dumps(content, indent=1) + "\n").encode())
    _write_record(path, record, files)
    make_room(0)  # folders made here count towards the limit, as fetched ones do
    return True


def _fetch(path: Path, uri: str, key: str) -> bool:
    """Fetch a folder unless another process here has done so; return whether it is present."""
    objects = Objects.open(uri)
    files = _index(objects, key)
    if files is None:
        return False
    with FileLock(fetch_lock(path)):
        if _is_whole(path):
            return True
        shutil.rmtree(unfetched(path), ignore_errors=True)
        make_room(sum(file.num_bytes for file in files.values()))
        with new_folder(path, unfetched(path)) as folder:
            for parent in {(folder / name).parent for name in files}:
                parent.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                digests = threads.map(
                    lambda name: objects.download(f"{key}/{name}", folder / name), files
                )
                for (name, file), digest in zip(files.items(), digests, strict=True):
                    if digest != file.sha256:
                        raise StorageError(
                            f"storage_path: {uri}: {key}/{name} is not what was sent (its SHA-256 "
                            f"is another). Delete {_index_key(key)} there; the next start that "
                            f"needs {key} makes it again."
                        )
        _write_record(path, record_of(path), files)
    return True


def _is_whole(path: Path) -> bool:
    """Whether a folder matches the storage: it was sent from here, or fetched."""
    return path.is_dir() and record_of(path).is_file()


def _index_key(key: str) -> str:
    return f"{key}.index.json"


def _index(objects: Objects, key: str) -> dict[str, _File] | None:
    """Return the storage's index of a folder; None if there is none."""
    content = objects.read(_index_key(key))
    if content is None:
        return None
    try:
        found = json.loads(content)["files"]
        if not all(is_plain(name) for name in found):
            raise ValueError("a name that leads out of the folder")
        return {name: _File(int(f["num_bytes"]), str(f["sha256"])) for name, f in found.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise StorageError(
            f"storage_path: {objects.uri}: {_index_key(key)} is not what was written. Delete it; "
            f"the next start that needs {key} makes it again."
        ) from None


def _files(path: Path, record: Path) -> dict[str, _File]:
    """Return the files of a folder; those unchanged since the record are not read again."""
    known = _read_record(record)
    found = {}
    for name, file in sorted(_listed(path)):
        stat = file.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        before = known.get(name)
        digest = before[2] if before and before[:2] == stamp else sha256(file)
        found[name] = _File(stat.st_size, str(digest))
    return found


def _listed(path: Path) -> Iterator[tuple[str, Path]]:
    for file in path.rglob("*"):
        name = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix(), file


def _read_record(record: Path) -> Mapping[str, list[object]]:
    if not record.is_file():
        return {}
    try:
        with reading(record):
            content = read_json(record)["files"]
            return {name: list(stamp) for name, stamp in content.items()}
    except (StorageError, OSError):
        return {}


def _write_record(path: Path, record: Path, files: Mapping[str, _File]) -> None:
    stamps = {}
    for name, file in files.items():
        stat = (path / name).stat()
        stamps[name] = [stat.st_size, stat.st_mtime_ns, file.sha256]
    write_json(record, {"files": stamps, "num_bytes": sum(f.num_bytes for f in files.values())})
