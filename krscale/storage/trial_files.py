"""Files of a trial: sent by its worker if the driver is on another machine, else by the driver.

Every function takes a path in the folder of a run. For one outside every working folder, nothing is
sent or fetched.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

from krscale.errors import StorageError
from krscale.files import new_folder
from krscale.storage.address import is_plain, place_of
from krscale.storage.objects import Objects
from krscale.storage.run_files import ARCHIVE, pack, unpack

HERE = ".driver-here"
"""File in the folder of a run that the run's driver keeps locked."""


def send_file(*paths: Path) -> None:
    """Send files of a run, in this order."""
    for path in paths:
        if place := _elsewhere(path):
            Objects.open(place[0]).upload(place[1], path)


def send_checkpoint(path: Path) -> None:
    """Send the folder of a checkpoint, as one object."""
    if place := _elsewhere(path):
        Objects.open(place[0]).write(place[1] + ARCHIVE, pack(path))


def bring_checkpoint(path: Path) -> None:
    """Fetch the folder of a checkpoint if it is not here and the storage has it."""
    place = place_of(path)
    if place is None or path.is_dir():
        return
    content = Objects.open(place[0]).read(place[1] + ARCHIVE)
    if content is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unpack(content, path, f"storage_path: {place[0]}: {place[1]}{ARCHIVE}")


def drop_checkpoint(path: Path) -> None:
    """Remove the folder of the checkpoint of a trial that has ended.

    If the driver is on this machine, nothing is done: it removes the folder itself.
    """
    if _elsewhere(path):
        shutil.rmtree(path, ignore_errors=True)


def bring_all(path: Path) -> None:
    """Replace a folder with what other machines have sent of it, if anything."""
    place = place_of(path)
    if place is None:
        return
    objects, start = Objects.open(place[0]), len(place[1]) + 1
    keys = [key for key in objects.list(place[1]) if is_plain(key)]
    if keys:
        with new_folder(path) as folder:
            for key in keys:
                objects.download(key, folder / key[start:])


def remove_all(path: Path) -> None:
    """Remove a folder, and what other machines have sent of it."""
    shutil.rmtree(path, ignore_errors=True)
    if place := place_of(path):
        objects = Objects.open(place[0])
        for key in objects.list(place[1]):
            objects.delete(key)


def send_sign(path: Path) -> None:
    """Send a sign of progress to the driver's machine; a failure is ignored."""
    if place := _elsewhere(path):
        with suppress(StorageError):
            Objects.open(place[0]).write(place[1], b"1")


def _elsewhere(path: Path) -> tuple[str, str] | None:
    """Return the place of a file of a run; None unless the driver is on another machine."""
    place = place_of(path)
    if place is None:
        return None
    run = path
    for _ in range(place[1].count("/")):
        run = run.parent
    return None if _driver_is_here(run) else place


def _driver_is_here(run: Path) -> bool:
    try:
        descriptor = os.open(run / HERE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
