"""Where a storage is: a folder that all machines share, or a URI with a folder on each machine."""

from __future__ import annotations

import hashlib
import os
import re
from functools import cache
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from krscale.errors import StorageError, UserError
from krscale.files import write_text
from krscale.redaction import holds_userinfo, without_name

CACHE_VARIABLE = "KRSCALE_CACHE_PATH"
"""Environment variable: where a machine keeps working folders; default `~/.cache/krscale`."""
MARKER = ".storage"
"""File in a working folder that contains the URI of its storage."""
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_OF_NO_PATH = re.compile(r"[^A-Za-z0-9\-._~:/@!$&'()*+,;=%]")
_SECRET = re.compile(r"(?i)token|passw|pwd|secret|key|sig|credential|auth")
_NO_SECRETS = {"blob_storage_authority", "credential_kind", "dfs_storage_authority"}
"""Fields of pyarrow for Azure whose names only sound like secrets."""
_OF_BUCKETS, _OF_HADOOP = ("s3", "gs", "gcs"), ("hdfs", "viewfs")
_known: dict[str, str] = {}


def is_uri(text: str) -> bool:
    """Whether a storage is named by a URI, and not by a path.

    Example:
        >>> is_uri("s3://bucket/runs"), is_uri("/mnt/runs"), is_uri("runs")
        (True, False, False)
    """
    return _URI.match(text) is not None


def checked_uri(uri: str) -> str:
    """Return the normalised URI of a storage.

    Args:
        uri: As the user wrote it, e.g. `s3://bucket/prefix`.

    Raises:
        ValueError: If it contains credentials, names no bucket or folder, has what pyarrow would
            pass over (the port of a bucket, a user of Hadoop before `@`) or characters that are
            not allowed, or cannot be parsed. The message repeats nothing that may be a secret.

    Example:
        >>> checked_uri("s3://bucket/runs/")
        's3://bucket/runs'
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise ValueError(f"not a URI ({error})") from None
    scheme = parts.scheme.lower()
    if scheme in _OF_HADOOP and "@" in parts.netloc:
        raise ValueError(
            f"pyarrow reads no user before '@' in {scheme}://; append ?user=NAME instead"
        )
    if _holds_credentials(uri, parts.query):
        raise ValueError(
            "a URI with credentials in it; they would be written down with the experiment. Set "
            "them in the environment of every machine instead (for s3: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY)"
        )
    if scheme in _OF_BUCKETS and ":" in parts.netloc:
        raise ValueError(
            f"a bucket has no port; the address of a server is given apart from it, as "
            f"{scheme}://BUCKET/PREFIX?endpoint_override=HOST:PORT, with &scheme=http if it has no "
            f"TLS"
        )
    if parts.fragment or any(character.isspace() for character in uri):
        raise ValueError(f"{uri}: '#' and white space are not allowed in the URI of a storage")
    if not (parts.netloc or parts.path.strip("/")):
        raise ValueError(f"{uri}: names no bucket or folder; e.g. s3://bucket/prefix")
    if {".", ".."} & set(unquote(parts.path).split("/")):
        raise ValueError(f"{uri}: '.' and '..' are not allowed in the URI of a storage")
    if other := _OF_NO_PATH.search(parts.path):
        raise ValueError(
            f"{uri}: {other[0]!r} is not allowed in a URI; it is written {quote(other[0])} there"
        )
    path = re.sub("/+", "/", parts.path).rstrip("/")
    query = f"?{parts.query}" if parts.query else ""
    return f"{scheme}://{parts.netloc}{path}{query}"


def _holds_credentials(uri: str, query: str) -> bool:
    nameless = without_name(uri)
    fields = {name for name, _ in parse_qsl(query, keep_blank_values=True)} - _NO_SECRETS
    userinfo = "@" in urlsplit(nameless).netloc + query or holds_userinfo(nameless)
    return userinfo or any(_SECRET.search(name) for name in fields)


def working_folder(storage: str) -> Path:
    """Return the working folder of a storage on this machine.

    Args:
        storage: An absolute path, which is returned unchanged, or a URI.
    """
    if not is_uri(storage):
        return Path(storage)
    name = _folder_name(storage)
    _known[name] = storage
    return storages_root() / name


def storages_root() -> Path:
    """Return the folder that contains this machine's working folders.

    Raises:
        UserError: If the variable names a relative path, since the processes of a run have
            different current folders; or if a home directory is needed and none is known.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    try:
        base = Path(chosen).expanduser() if chosen else _general_cache() / "krscale"
    except RuntimeError:  # of `expanduser`
        raise UserError(
            f"{CACHE_VARIABLE}: {chosen or '~/.cache/krscale'}: no such home directory is known; "
            f"set an absolute path."
        ) from None
    if not base.is_absolute():
        raise UserError(
            f"{CACHE_VARIABLE}: {base} is a relative path, and the processes of a run have "
            f"different current folders; set an absolute one, as {Path.cwd() / base}."
        )
    return Path(os.path.realpath(base)) / "storages"


def _general_cache() -> Path:
    general = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    # A relative path is to be ignored, by the rules of this variable.
    return general if general.is_absolute() else Path("~/.cache").expanduser()


def place_of(path: Path) -> tuple[str, str] | None:
    """Return the URI of the storage whose working folder contains a path, and the path's key.

    Args:
        path: Absolute; it need not exist.

    Returns:
        None for a path outside every working folder.
    """
    root = f"{storages_root()}{os.sep}"
    text = str(path)
    if not text.startswith(root):
        return None
    name, _, key = text.removeprefix(root).partition(os.sep)
    uri = _known.get(name) or _marked(Path(root) / name / MARKER)
    return (uri, key) if uri else None


def here(path: Path | str, storage: str) -> Path:
    """Return the path on this machine for a path in another machine's working folder.

    Args:
        path: In any machine's working folder of `storage`; other paths are returned unchanged.
        storage: The path or URI of the storage.
    """
    path = Path(path)
    if not is_uri(storage):
        return path
    name = _folder_name(storage)
    parts = path.parts
    if "storages" not in parts or name not in parts:
        return path
    return working_folder(storage).joinpath(*parts[parts.index(name) + 1 :])


def is_plain(key: str) -> bool:
    """Whether a key from an untrusted source stays in the folder that it is joined to.

    Example:
        >>> is_plain("students/kr/seed-1.safetensors"), is_plain("../x"), is_plain("/etc/x")
        (True, False, False)
    """
    return all(part not in ("", ".", "..") for part in key.split("/")) and "\\" not in key


def mark(storage: str) -> None:
    """Create the working folder of a URI, with the marker file that contains the URI.

    Raises:
        StorageError: If this machine cannot write it; the message names the variable that sets
            another folder.
    """
    folder = working_folder(storage)
    marker = folder / MARKER
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not marker.is_file() or marker.read_text(encoding="utf-8") != storage:
            write_text(marker, storage)
    except (StorageError, OSError) as error:
        why = str(error) if isinstance(error, StorageError) else error.strerror or str(error)
        raise StorageError(
            f"{folder}: what this machine has of {storage} cannot be kept there: "
            f"{why.rstrip('.')}. {CACHE_VARIABLE} names another folder."
        ) from None


def storage_of(folder: Path) -> str:
    """Return the URI of the storage whose working folder this is, or else the folder's path."""
    found = place_of(folder / MARKER)
    return found[0] if found and found[1] == MARKER else str(folder)


@cache
def _folder_name(uri: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9]+", "-", uri.partition("?")[0]).strip("-")[:40]
    return f"{readable}-{hashlib.sha256(uri.encode()).hexdigest()[:12]}"


def _marked(marker: Path) -> str:
    try:
        return marker.read_text(encoding="utf-8")
    except OSError:
        return ""
