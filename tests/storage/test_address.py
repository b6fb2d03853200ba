"""Where a storage is."""

from __future__ import annotations

import errno
import os
import pwd
import re
from pathlib import Path

import pytest
from pyarrow import fs

from krscale.errors import StorageError, UserError
from krscale.redaction import redact
from krscale.storage.address import (
    CACHE_VARIABLE,
    checked_uri,
    here,
    is_uri,
    mark,
    place_of,
    storage_of,
    working_folder,
)


@pytest.mark.parametrize("uri", ["s3://b/p", "gs://b", "file:///x", "fsspec+memory://a", "S3://b"])
def test_uris_are_told_from_paths(uri: str) -> None:
    assert is_uri(uri)
    assert not is_uri(f"./{uri}")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:S3CRET@b/p",
        "s3://S3CRET@b/p",
        "s3://b/p?secret_key=S3CRET",
        "s3://b/p?access_token=S3CRET",
        "abfs://b/p?sig=S3CRET",
        "s3://AKIA:half/S3CRET@b/p",
        "s3://b/p?endpoint_override=AKIA:S3CRET@host:9000",
        "abfs://account:S3CRET@container/p",
        "abfs://S3CRET@container/p",
        "abfs://container@S3CRET@account/p",
        "abfs://container@account.dfs.core.windows.net/p?client_secret=S3CRET",
        "gs://S3CRET@b/p",
        "sftp://me:S3CRET@host/p",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(ValueError, match="AWS_SECRET_ACCESS_KEY") as caught:
        checked_uri(uri)
    assert "S3CRET" not in str(caught.value)
    assert "AKIA" not in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["s3://", "s3:///", "s3://b/a b", "s3://b/../x", "s3://b#x", "s3://[b"]
)
def test_no_place(uri: str) -> None:
    with pytest.raises(ValueError, match=r"URI|names no|not allowed"):
        checked_uri(uri)


@pytest.mark.parametrize(
    ("uri", "written"),
    [("s3://b/é", "%C3%A9"), ("s3://b/a[1]", "%5B"), ("s3://b/a\\b", "%5C"), ("s3://b/./a", "'.'")],
)
def test_what_no_uri_has_is_refused_with_how_it_is_written(uri: str, written: str) -> None:
    with pytest.raises(ValueError, match="not allowed") as caught:
        checked_uri(uri)
    assert written in str(caught.value)


def test_a_name_before_the_host_is_no_credential() -> None:
    """Container or account of Azure, and `anonymous` of Google, as pyarrow reads them."""
    for uri in (
        "abfs://container@account.dfs.core.windows.net/p",
        "abfss://my-container@account.dfs.core.windows.net/p",
        "abfs://account@container/p",
        "abfs://account@127.0.0.1:10000/container/p?enable_tls=false&credential_kind=cli",
        "abfs://account@container/p?blob_storage_authority=.blob.local",
        "gs://anonymous@bucket/p?scheme=http&endpoint_override=127.0.0.1:4443",
    ):
        assert checked_uri(uri) == uri
        assert redact(uri).partition("?")[0] == uri.partition("?")[0]
    _, path = fs.FileSystem.from_uri("abfs://container@account.dfs.core.windows.net/p")
    assert path == "container/p"


@pytest.mark.parametrize("uri", ["hdfs://me@node:8020/p", "viewfs://me@cluster/p"])
def test_a_user_that_pyarrow_would_pass_over_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"no user before .@.*append \?user=NAME"):
        checked_uri(uri)
    assert checked_uri("hdfs://node:8020/p?user=me") == "hdfs://node:8020/p?user=me"


@pytest.mark.parametrize("uri", ["s3://b:9000/p", "S3://b:9000", "gs://b:80/p", "gcs://[::1]:80/p"])
def test_a_port_that_pyarrow_would_pass_over_is_refused(uri: str) -> None:
    """The host of a server in the place of the bucket: its first folder is the bucket, then."""
    scheme = uri.partition(":")[0].lower()
    advice = re.escape(f"{scheme}://BUCKET/PREFIX?endpoint_override=HOST:PORT")
    with pytest.raises(ValueError, match=f"a bucket has no port; .*{advice}"):
        checked_uri(uri)


def test_one_form() -> None:
    assert checked_uri("S3://bucket//a/") == checked_uri("s3://bucket/a") == "s3://bucket/a"
    assert checked_uri("s3://b/p/?region=eu") == "s3://b/p?region=eu"
    assert checked_uri("hdfs://node:8020/you@home") == "hdfs://node:8020/you@home"


def test_each_machine_has_its_own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "s3://bucket/a"
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "one"))
    of_one = working_folder(uri) / "cache" / "data" / "digits"
    assert place_of(of_one) == (uri, "cache/data/digits")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "two"))
    assert place_of(of_one) is None
    assert here(of_one, uri) == working_folder(uri) / "cache" / "data" / "digits"
    assert here(of_one, "/mnt/runs") == of_one
    assert here("/elsewhere/x", uri) == Path("/elsewhere/x")
    assert working_folder("s3://bucket/b") != working_folder(uri)


def test_a_relative_folder_would_be_another_in_each_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers of Ray have current folders of their own."""
    uri = "s3://bucket/a"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(CACHE_VARIABLE, "cache")
    for use in (working_folder, mark):
        with pytest.raises(
            UserError, match=f"{CACHE_VARIABLE}: cache is a relative path, .*/cache"
        ):
            use(uri)
    monkeypatch.setenv(CACHE_VARIABLE, "~/cache")
    assert working_folder(uri).is_relative_to(tmp_path / "home" / "cache")
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")  # such a value is to be ignored
    assert working_folder(uri).is_relative_to(tmp_path / "home" / ".cache" / "krscale")


@pytest.mark.parametrize("chosen", ["", "~/cache", "~of-nobody/cache"])
def test_a_home_that_nobody_knows_is_said(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run as a user without an entry, and with no HOME."""

    def unknown(_user: object) -> None:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)
    monkeypatch.setenv(CACHE_VARIABLE, chosen)
    with pytest.raises(UserError, match=f"{CACHE_VARIABLE}: ~.*cache.*: no such home directory"):
        working_folder("s3://bucket/a")
    monkeypatch.setenv(CACHE_VARIABLE, "/var/cache")
    assert working_folder("s3://bucket/a").is_relative_to("/var/cache/storages")


def test_a_working_folder_says_what_it_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    uri = "s3://bucket/marked"
    mark(uri)
    folder = working_folder(uri)
    monkeypatch.setattr("krscale.storage.address._known", {})  # as in another process
    assert storage_of(folder) == uri
    assert place_of(folder / "run" / "journal.log") == (uri, "run/journal.log")
    assert storage_of(tmp_path) == str(tmp_path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT, errno.EROFS, errno.ENOSPC])
def test_a_machine_without_a_place_for_it_says_which_variable_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))

    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "/home/me")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(StorageError, match=f"cannot be kept there: .*{CACHE_VARIABLE}") as caught:
        mark("s3://bucket/a")
    assert str(caught.value).startswith(f"{tmp_path}/storages/s3-bucket-a-")
