"""Open a storage, and check that this machine can write to it and read what it wrote."""

from __future__ import annotations

import os
import re
import uuid

from krscale.errors import StorageError
from krscale.storage.address import is_uri, mark
from krscale.storage.objects import Objects, missing_credentials
from krscale.storage.room import limit_room

_REQUEST = re.compile(r" \(Request ID: [^)]*\)")


def open_storage(storage: str, cache_gb: float) -> None:
    """Prepare this process for a storage; nothing is done if it is a folder.

    Args:
        storage: Its path or URI.
        cache_gb: How much data and stores this machine may keep, in GB (`cluster.cache_gb`).
    """
    if is_uri(storage):
        limit_room(cache_gb)
        mark(storage)


def probe(storage: str) -> None:
    """Write, read, list and delete an object of a storage that is a URI.

    Raises:
        StorageError: If one of these fails, or if no other process could see what is written. The
            message names the failed step and missing credentials. It omits what differs between
            calls, so that the same problem gives the same message everywhere.
    """
    if not is_uri(storage):
        return
    objects, name = Objects.open(storage), f"{os.getpid()}-{uuid.uuid4().hex}"
    if objects.is_of_one_process:
        raise StorageError(
            f"storage_path: {storage}: it is in the memory of one process, where no worker finds "
            "it, nor the next command. Use a folder, or a URI such as s3://bucket/prefix."
        )
    key, content = f".probe/{name}", uuid.uuid4().bytes
    try:
        objects.write(key, content)
        found, listed = objects.read(key), key in objects.list(".probe")
        objects.delete(key)
    except StorageError as error:
        said = _REQUEST.sub("", str(error)).replace(name, "probe")
        raise StorageError(said) from None
    if found != content or not listed:
        raise StorageError(
            f"storage_path: {storage}: what was written there a moment ago cannot be "
            f"{'listed' if found == content else 'read'}. {missing_credentials(storage)}".strip()
        )
