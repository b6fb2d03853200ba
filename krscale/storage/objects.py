"""Read, write, list and delete objects of a storage by key, whole or not at all.

Only this module imports pyarrow.fs. Every failure is a `StorageError` without credentials in it.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from krscale.errors import StorageError, unknown_name
from krscale.files import write_atomic
from krscale.redaction import redact
from krscale.storage.address import place_of

_CHUNK = 8 << 20
_IN_FLIGHT = threading.BoundedSemaphore(6)
"""Limits how many chunks of large objects this process sends to S3 at once. pyarrow itself copies
whatever is written into memory, without a limit, and sends it with eight threads, in order: a
heartbeat would wait until all of it is sent. Two of the threads are left for small objects."""
_AZURE = ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET")
_CREDENTIALS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "gcs": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "abfs": _AZURE,
    "abfss": _AZURE,
}
"""Environment variables with credentials, by scheme; a machine with a role needs none of them."""
_OF_PYARROW = ("abfs", "abfss", "file", "gcs", "gs", "hdfs", "hf", "s3", "viewfs")
"""Schemes for which pyarrow has a file system."""
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Environment variables with the address of an S3 server, the first that is set counts."""
_DEFAULTS = {
    # An object of up to 10 MB then takes one request instead of three.
    "s3": ("allow_delayed_open", "true"),
    # By default, 15 minutes pass until missing credentials or a wrong address are reported.
    "gs": ("retry_limit_seconds", "30"),
    "gcs": ("retry_limit_seconds", "30"),
    # As for `_IN_FLIGHT`; S3 has no such option in its URIs.
    "abfs": ("background_writes", "false"),
    "abfss": ("background_writes", "false"),
}
"""Options of a file system that are added to a URI without them, by scheme."""
_OPENED: dict[tuple[int, str], Objects] = {}


@dataclass(frozen=True)
class Info:
    """What a listing contains about an object.

    Attributes:
        num_bytes: Its size.
        time_ns: When it was written, by the storage's clock, in nanoseconds since 1970.
    """

    num_bytes: int
    time_ns: int


class Objects:
    """The objects of one storage.

    Args:
        uri: As the user named it, for error messages.
        filesystem: A file system of `pyarrow.fs`.
        root: Path of the storage in it.
    """

    def __init__(self, uri: str, filesystem: Any, root: str) -> None:
        self.uri, self.filesystem, self.root = uri, filesystem, root.rstrip("/")
        self._is_local = filesystem.type_name == "local"
        self._is_s3 = filesystem.type_name == "s3"

    @classmethod
    def open(cls, uri: str) -> Self:
        """Return the objects of a URI; it is opened once per process.

        Raises:
            StorageError: If there is no file system for it, or it cannot be reached.
        """
        key = (os.getpid(), uri)
        if key not in _OPENED:
            _OPENED[key] = cls(uri, *_resolve(uri))
        return _OPENED[key]  # type: ignore[return-value]

    @property
    def is_of_one_process(self) -> bool:
        """Whether other processes that open this URI find nothing of what is written here."""
        # In-memory file systems of pyarrow and of fsspec.
        return self.filesystem.type_name in ("mock", "py::fsspec+memory")

    def path(self, key: str) -> str:
        """Return the path of a key's object in the file system."""
        return f"{self.root}/{key}" if key else self.root

    def read(self, key: str) -> bytes | None:
        """Return the content of an object; None if there is none."""
        with _talking(self.uri, f"read {key}"):
            try:
                with self.filesystem.open_input_stream(self.path(key)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def write(self, key: str, content: bytes) -> None:
        """Write an object; an older one is replaced."""
        whole = memoryview(content)
        chunks = [whole[start : start + _CHUNK] for start in range(0, len(whole) or 1, _CHUNK)]
        self._put(key, lambda stream: self._write_chunks(stream, chunks))

    def upload(self, key: str, path: Path) -> str:
        """Write a file as an object; return the SHA-256 of what was written."""
        digest = hashlib.sha256()

        def chunks() -> Iterator[bytes]:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    yield chunk

        self._put(key, lambda stream: self._write_chunks(stream, chunks()))
        return digest.hexdigest()

    def download(self, key: str, path: Path) -> str:
        """Write an object as a file, atomically; return the SHA-256 of what was read.

        Raises:
            StorageError: If there is no such object, it cannot be read, or the disk is full.
        """
        digest = hashlib.sha256()

        def copy(temporary: Path) -> None:
            with (
                self.filesystem.open_input_stream(self.path(key)) as stream,
                temporary.open("wb") as file,
            ):
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)

        with _talking(self.uri, f"read {key}"):
            write_atomic(path, copy)
        return digest.hexdigest()

    def info(self, key: str) -> Info | None:
        """Return size and time of an object; None if there is none."""
        with _talking(self.uri, f"look for {key}"):
            found = self.filesystem.get_file_info(self.path(key))
        return _info(found) if found.is_file else None

    def list(self, prefix: str) -> dict[str, Info]:
        """Return all objects in a folder and its subfolders, by key."""
        from pyarrow import fs

        start = len(self.root) + 1
        with _talking(self.uri, f"list {prefix}"):
            selector = fs.FileSelector(self.path(prefix), recursive=True, allow_not_found=True)
            found = self.filesystem.get_file_info(selector)
        return {each.path[start:]: _info(each) for each in found if each.is_file}

    def delete(self, key: str) -> None:
        """Delete an object if it exists."""
        with _talking(self.uri, f"delete {key}"), suppress(FileNotFoundError):
            self.filesystem.delete_file(self.path(key))

    def _write_chunks(self, stream: Any, chunks: Iterable[bytes | memoryview]) -> None:
        """Write an object in chunks; see `_IN_FLIGHT`."""
        num_taken = 0
        try:
            for number, chunk in enumerate(chunks):
                if number and self._is_s3:
                    if not _IN_FLIGHT.acquire(blocking=False):
                        stream.flush()  # returns when what was written has been sent
                        num_taken = _give_back(num_taken)
                        _IN_FLIGHT.acquire()
                    num_taken += 1
                stream.write(chunk)
            if num_taken:
                stream.flush()
        finally:
            _give_back(num_taken)

    def _put(self, key: str, write: Callable[[Any], Any]) -> None:
        path = self.path(key)
        with _talking(self.uri, f"write {key}"):
            if not self._is_local:
                self._put_remote(path, write)
                return
            self.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
            beside = f"{path}.{uuid.uuid4().hex}.part"
            try:
                with self.filesystem.open_output_stream(beside) as stream:
                    write(stream)
                self.filesystem.move(beside, path)
            except BaseException:
                with suppress(OSError):  # each try on a full disk would leave a part of the file
                    self.filesystem.delete_file(beside)
                raise

    def _put_remote(self, path: str, write: Callable[[Any], Any]) -> None:
        stream = self.filesystem.open_output_stream(path)
        try:
            write(stream)
        except BaseException:
            with suppress(Exception):
                stream.close()  # raises if a part was refused; then nothing was stored
                self.filesystem.delete_file(path)  # an incomplete object
            raise
        # If this fails, nothing was stored, and an older object is unchanged.
        stream.close()


def _give_back(num_taken: int) -> int:
    """Let others send as many chunks; return 0, the number that is still taken."""
    for _ in range(num_taken):
        _IN_FLIGHT.release()
    return 0


def _info(found: Any) -> Info:
    return Info(int(found.size or 0), int(found.mtime_ns or 0))


def _resolve(uri: str) -> tuple[Any, str]:
    """Return the file system of a URI and the path in it; fsspec's if pyarrow has none."""
    from pyarrow import ArrowInvalid, fs

    asked = uri
    option, value = _DEFAULTS.get(uri.partition(":")[0], ("", ""))
    if option and option not in uri:
        asked += f"{'&' if '?' in uri else '?'}{option}={value}"
    with _talking(uri, "reach it"):
        try:
            filesystem, root = fs.FileSystem.from_uri(asked)
            if filesystem.type_name == "abfs":
                # Without credentials this raises an error; a read would end the process.
                filesystem.get_file_info(root)
            return filesystem, root
        except ArrowInvalid as error:
            if "nrecognized filesystem" not in str(error):
                raise
        try:
            return fs.FileSystem.from_uri(f"fsspec+{uri}")  # type: ignore[no-any-return]
        except (ValueError, ImportError) as error:
            scheme = uri.partition(":")[0]
            raise StorageError(
                f"storage_path: {uri}: neither pyarrow nor fsspec has a file system for "
                f"{scheme}:// ({_first_line(error)}). pyarrow has s3, gs, abfs, hdfs and file."
            ) from None


def check_scheme(storage: str) -> None:
    """Refuse a storage's URI for whose scheme there is no file system, without a connection.

    Raises:
        UserError: With the nearest scheme. A path is never refused.

    Example:
        >>> check_scheme("s3://bucket/runs"), check_scheme("runs")
        (None, None)
        >>> check_scheme("s4://bucket/runs")
        Traceback (most recent call last):
        krscale.errors.UserError: storage_path: unknown scheme 's4'. Did you mean 's3'? ...
    """
    scheme, separator, _ = storage.partition("://")
    if not separator or scheme in _OF_PYARROW or scheme.startswith("fsspec+"):
        return
    others: list[str] = []
    with suppress(ImportError):  # pyarrow takes the file systems of fsspec, if that is installed
        others = importlib.import_module("fsspec").available_protocols()
    if scheme not in others:
        raise unknown_name("scheme", scheme, _OF_PYARROW, "storage_path")


def place_for_ray(folder: Path) -> tuple[str, Any]:
    """Return the `storage_path` with which Ray keeps its files of a folder.

    Returns:
        A path and its file system, which is None for the machine's own.
    """
    place = place_of(folder)
    if place is None:
        return str(folder), None
    objects = Objects.open(place[0])
    return objects.path(place[1]), objects.filesystem


@contextmanager
def _talking(uri: str, doing: str) -> Iterator[None]:
    """Convert the errors of a file system to `StorageError`."""
    from pyarrow import ArrowException

    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        # Those that fsspec has pass on whatever the libraries below them raise.
        expected = (OSError, ValueError, ImportError, NotImplementedError, ArrowException)
        if not isinstance(error, expected) and uri.partition(":")[0] in _OF_PYARROW:
            raise
        # Some file systems of fsspec are read-only: http, github, zip.
        unable = isinstance(error, NotImplementedError)
        why = "its file system cannot do that" if unable else _first_line(error)
        found = f"storage_path: {uri}: cannot {doing}: {why}."
        hints = filter(None, (_endpoint(uri), missing_credentials(uri)))
        raise StorageError(" ".join((found, *hints))) from None


def _endpoint(uri: str) -> str:
    """Return a sentence on the variable with the server's address; empty if none counts."""
    name = next((name for name in _ENDPOINTS if os.environ.get(name)), "")
    if not (name and uri.startswith("s3:")) or "endpoint_override" in uri:
        return ""
    address = os.environ[name]
    is_url = address.startswith(("http://", "https://"))
    wrong = "" if is_url else ", which does not begin with http:// or https://"
    return f"The server is that of {name}: {redact(address)!r}{wrong}."


def missing_credentials(uri: str) -> str:
    """Return a sentence on credential variables that are not set; empty if there are none.

    Example:
        >>> missing_credentials("file:///mnt/runs")
        ''
    """
    names = _CREDENTIALS.get(uri.partition(":")[0], ())
    missing = [name for name in names if not os.environ.get(name)]
    if not missing:
        return ""
    listed = " and ".join(missing)
    return f"Not set in the environment: {listed}."


def _first_line(error: BaseException) -> str:
    text = (str(error).splitlines() or [""])[0].partition(" error_info=")[0].strip().rstrip(".")
    return redact(text) or type(error).__name__
