"""Objects of a storage: in a folder, in memory, and on an S3 server on loopback."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import ANY

import pyarrow as pa
import pytest
from pyarrow import fs
from s3_server import CREDENTIALS, KEY, SECRET, query, s3_server

from krscale.errors import StorageError, UserError
from krscale.storage.objects import (
    _IN_FLIGHT,
    Info,
    Objects,
    _talking,
    check_scheme,
    missing_credentials,
)
from krscale.storage.opening import probe


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Part of a URI that leads to an S3 server of this process, with a bucket `bucket`."""
    with s3_server() as where, pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield query(where)


@pytest.fixture(params=["s3", "file", "memory"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """An empty storage of each kind."""
    if request.param == "s3":
        where = request.getfixturevalue("s3")
        return Objects.open(f"s3://bucket/{tmp_path.name}{where}")
    if request.param == "memory":
        pytest.importorskip("fsspec")
        return Objects.open(f"memory://{tmp_path.name}")
    return Objects.open(f"file://{tmp_path}/bucket")


def test_written_read_listed_deleted(objects: Objects, tmp_path: Path) -> None:
    assert objects.read("run/a") is None
    assert objects.info("run/a") is None
    assert objects.list("run") == {}
    objects.write("run/a", b"1")
    objects.write("run/a", b"22")
    (tmp_path / "file").write_bytes(b"333")
    digest = hashlib.sha256(b"333").hexdigest()
    assert objects.upload("run/deep/b", tmp_path / "file") == digest
    assert {key: info.num_bytes for key, info in objects.list("run").items()} == {
        "run/a": 2,
        "run/deep/b": 3,
    }
    assert set(objects.list("run/deep")) == {"run/deep/b"}
    assert objects.read("run/a") == b"22"
    assert objects.download("run/deep/b", tmp_path / "there" / "file") == digest
    objects.delete("run/a")
    objects.delete("run/a")
    assert set(objects.list("run")) == {"run/deep/b"}
    with pytest.raises(StorageError, match="cannot read run/none"):
        objects.download("run/none", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_large_object_goes_there_and_back_in_parts(s3: str, tmp_path: Path) -> None:
    """Arrow sends what is above 10 MB in parts."""
    content = os.urandom(1 << 20) * 30
    (tmp_path / "large").write_bytes(content)
    objects = Objects.open(f"s3://bucket/{tmp_path.name}{s3}")
    digest = objects.upload("large", tmp_path / "large")
    assert objects.list("") == {"large": Info(30 << 20, ANY)}
    assert objects.download("large", tmp_path / "back") == digest
    assert (tmp_path / "back").read_bytes() == content


@pytest.mark.parametrize("num_bytes", [4, 24_000_000])
def test_a_write_that_fails_leaves_nothing(objects: Objects, num_bytes: int) -> None:
    def fail(stream: object) -> None:
        stream.write(b"x" * num_bytes)  # type: ignore[attr-defined]
        raise OSError("the disk does not work")

    with pytest.raises(StorageError, match="the disk does not work"):
        objects._put("run/half", fail)
    assert objects.read("run/half") is None
    assert objects.list("run") == {}


class Refusing:
    """A storage that refuses writes, as S3 does: at the end, or at each part as well."""

    type_name, deleted = "s3", False

    def __init__(self, refuses_parts: bool) -> None:
        self.refuses_parts = refuses_parts

    def open_output_stream(self, _path: str) -> Refusing:
        return self

    def write(self, _content: bytes) -> None:
        if self.refuses_parts:
            raise OSError("503 Slow Down")

    def close(self) -> None:
        raise OSError("503 Slow Down")

    def delete_file(self, _path: str) -> None:
        self.deleted = True


@pytest.mark.parametrize("refuses_parts", [False, True])
def test_a_write_that_is_refused_leaves_the_older_object(refuses_parts: bool) -> None:
    filesystem = Refusing(refuses_parts)
    with pytest.raises(StorageError, match=r"cannot write run/\.driver\.json: 503 Slow Down"):
        Objects("s3://bucket", filesystem, "bucket").write("run/.driver.json", b"{}")
    assert not filesystem.deleted, "a lock that is lost so would end the search that holds it"


class Queueing:
    """A storage that takes whatever it is given and sends it later, as pyarrow's S3 does."""

    type_name = "s3"
    queued = most = sent = 0

    def open_output_stream(self, _path: str) -> Queueing:
        return self

    def write(self, content: bytes) -> None:
        self.queued += len(content)
        self.most = max(self.most, self.queued)

    def flush(self) -> None:
        self.sent += self.queued
        self.queued = 0

    def close(self) -> None:
        self.flush()


@pytest.mark.parametrize(("num_taken", "most"), [(0, 60_000_000), (5, 17_000_000)])
def test_a_large_object_is_not_queued_as_a_whole(num_taken: int, most: int, tmp_path: Path) -> None:
    """It would be in memory as a whole, and a heartbeat would wait until all of it is sent."""
    content = bytes(100_000_000)
    (tmp_path / "large").write_bytes(content)
    for send in (
        lambda objects: objects.upload("large", tmp_path / "large"),
        lambda objects: objects.write("large", content),
    ):
        filesystem = Queueing()
        with taken(num_taken):  # by objects that are sent at the same time
            send(Objects("s3://bucket", filesystem, "bucket"))
        assert len(content) == filesystem.sent
        assert 8_000_000 < filesystem.most < most
    with taken(6):
        Objects("s3://bucket", Queueing(), "bucket").write("small", b"1")  # does not wait


@contextmanager
def taken(number: int) -> Iterator[None]:
    """Take places for chunks of large objects, none of which may be lost."""
    assert all(_IN_FLIGHT.acquire(blocking=False) for _ in range(number))
    yield
    for _ in range(number):
        _IN_FLIGHT.release()


@pytest.mark.parametrize("content", [b"", b"1", bytes(range(256)) * 70_000])
def test_objects_of_all_lengths_are_written_whole(content: bytes, tmp_path: Path) -> None:
    objects = Objects.open(f"file://{tmp_path}/bucket")
    objects.write("a", content)
    assert objects.read("a") == content


AZURE = "abfs://container@account.dfs.core.windows.net/p"


class Azure:
    """A storage that is asked for a folder before it is used."""

    type_name = "abfs"

    def __init__(self, answer: Exception | None = None) -> None:
        self.answer = answer

    def get_file_info(self, path: str) -> None:
        assert path == "container/p"
        if self.answer:
            raise self.answer

    def open_input_stream(self, _path: str) -> None:
        raise AssertionError("pyarrow ends the process where it finds no credentials")


def test_azure_sends_what_it_is_given_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    made, root = fs.FileSystem.from_uri(f"{AZURE}?background_writes=false")
    assert (made.type_name, root) == ("abfs", "container/p"), "an option that pyarrow knows"

    def from_uri(uri: str) -> tuple[object, str]:
        asked.append(uri)
        return Azure(), "container/p"

    monkeypatch.setattr(fs, "FileSystem", SimpleNamespace(from_uri=from_uri))
    monkeypatch.setattr("krscale.storage.objects._OPENED", {})
    Objects.open(AZURE)
    assert asked == [f"{AZURE}?background_writes=false"]


def test_azure_without_credentials_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    filesystem = Azure(pa.ArrowException("Unknown error: no token"))
    found = SimpleNamespace(from_uri=lambda _uri: (filesystem, "container/p"))
    monkeypatch.setattr(fs, "FileSystem", found)
    monkeypatch.setattr("krscale.storage.objects._OPENED", {})
    with pytest.raises(StorageError) as caught:
        Objects.open(AZURE).read("run/.driver.json")
    assert str(caught.value) == (
        f"storage_path: {AZURE}: cannot reach it: Unknown error: no token. "
        "Not set in the environment: AZURE_TENANT_ID and AZURE_CLIENT_ID and AZURE_CLIENT_SECRET."
    )


def test_a_storage_is_tried_before_it_is_used(s3: str) -> None:
    probe(f"s3://bucket/probed{s3}")
    assert Objects.open(f"s3://bucket/probed{s3}").list("") == {}
    probe("/no/uri")
    with pytest.raises(StorageError, match="NO_SUCH_BUCKET") as caught:
        probe(f"s3://none/x{s3}")
    assert SECRET not in str(caught.value)
    assert KEY not in str(caught.value)


def test_missing_credentials_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in missing_credentials("s3://b/p")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    assert missing_credentials("s3://b") == "Not set in the environment: AWS_SECRET_ACCESS_KEY."
    assert missing_credentials("memory://b") == ""


def test_credentials_of_google_that_are_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pyarrow raises is none of Python's own exceptions."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no.json")
    with pytest.raises(StorageError, match=r"storage_path: gs://b/p: cannot write") as caught:
        probe("gs://b/p")
    assert str(caught.value).endswith("Cannot open credentials file /no.json.")


def test_credentials_that_azure_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `az` is asked and machines of Azure may have a role, the storage itself is not tried."""
    for name in ("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AZURE_TENANT_ID", "mine")
    uri = "abfs://me.blob.core.windows.net/b/p"
    with pytest.raises(StorageError) as caught, _talking(uri, "write x"):
        raise pa.ArrowException("Unknown error: no token\nfor you")
    assert str(caught.value) == (
        f"storage_path: {uri}: cannot write x: Unknown error: no token. "
        "Not set in the environment: AZURE_CLIENT_ID and AZURE_CLIENT_SECRET."
    )


@pytest.mark.parametrize(("given", "limit"), [("", "30"), ("?retry_limit_seconds=5", "5")])
def test_google_is_not_asked_for_a_quarter_of_an_hour(
    given: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def from_uri(uri: str) -> tuple[object, str]:
        asked.append(uri)
        return SimpleNamespace(type_name="gcs"), "b/p"

    monkeypatch.setattr(fs, "FileSystem", SimpleNamespace(from_uri=from_uri))
    monkeypatch.setattr("krscale.storage.objects._OPENED", {})
    Objects.open(f"gs://b/p{given}")
    assert asked == [f"gs://b/p?retry_limit_seconds={limit}"]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("not a url", "AWS_ENDPOINT_URL: 'not a url', which does not begin with http:// or https"),
        ("http://127.0.0.1:1", "AWS_ENDPOINT_URL: 'http://127.0.0.1:1'."),
        ("http://me:S3CRET@127.0.0.1:1", "AWS_ENDPOINT_URL: 'http://***@127.0.0.1:1'."),
    ],
)
def test_the_variable_with_the_server_is_named(
    address: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    for uri, is_named in (
        ("s3://b/p", True),
        ("s3://b/p?endpoint_override=127.0.0.1:1", False),
        ("gs://b/p", False),
    ):
        with pytest.raises(StorageError) as caught, _talking(uri, "write x"):
            raise OSError("no answer")
        assert (told in str(caught.value)) == is_named
        assert "S3CRET" not in str(caught.value)


@pytest.mark.parametrize("uri", ["memory://bucket", "memory://a/b", "mock://a/b"])
def test_the_memory_of_one_process_is_no_storage(uri: str) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(StorageError, match=f"storage_path: {uri}: it is in the memory of one proc"):
        probe(uri)


def test_a_file_system_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(StorageError, match=r"http://host/x: cannot write \.probe/probe: its file"):
        probe("http://host/x")


class LibraryError(Exception):
    """As of a library that a file system of fsspec uses."""


def test_what_libraries_below_fsspec_raise_is_an_error_of_the_storage() -> None:
    with (
        pytest.raises(StorageError, match="sftp://host/x: cannot write a: no key"),
        _talking("sftp://host/x", "write a"),
    ):
        raise LibraryError("no key")
    with pytest.raises(LibraryError), _talking("s3://bucket/x", "write a"):
        raise LibraryError("a defect")


def test_an_unknown_scheme_is_refused_without_a_connection() -> None:
    for storage in ("gs://bucket/x", "s3://bucket", "a/folder", "fsspec+memory://x"):
        check_scheme(storage)
    with pytest.raises(UserError, match=r"unknown scheme 'foo'.*Allowed: abfs, .* s3"):
        check_scheme("foo://bucket/x")
    with pytest.raises(UserError, match="Did you mean 'gs'"):
        check_scheme("gss://bucket/x")


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(StorageError, match=r"neither pyarrow nor fsspec .* foo://"):
        Objects.open("foo://bucket/x")
