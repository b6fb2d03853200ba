"""Problems of a cluster's nodes are listed by node; Ray is a fake that calls functions at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError, WorkerCrashedError
from s3_server import CREDENTIALS, query, s3_server

from krscale.cluster import nodes
from krscale.cluster.nodes import reach_storage
from krscale.config import Experiment, load
from krscale.errors import UserError
from krscale.storage import objects
from krscale.storage.address import CACHE_VARIABLE

HEAD, OTHER = "a" * 56, "b" * 56
VERSIONS = {"Python": "3.11.7", "krscale": "1.0", "ray": "2.60", "torch": "2.13", "pyarrow": "25"}


@dataclass
class FakeRay:
    """Two nodes; what differs on one is set up before its task runs, and undone after it."""

    alive: tuple[str, ...] = (HEAD, OTHER)
    different: dict[str, Callable[[pytest.MonkeyPatch], None]] = field(default_factory=dict)
    exceptions = ray.exceptions
    asked: list[str] = field(default_factory=list)

    def nodes(self) -> list[dict[str, Any]]:
        found = [{"NodeID": HEAD, "NodeManagerAddress": "10.0.0.1", "Alive": HEAD in self.alive}]
        other = {"NodeID": OTHER, "NodeManagerAddress": "10.0.0.2", "Alive": OTHER in self.alive}
        return [*found, other]

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(get_node_id=lambda: HEAD)

    def remote(self, look: Callable[..., Any]) -> Any:
        def options(*, scheduling_strategy: Any, **_: Any) -> Any:
            return SimpleNamespace(remote=lambda *a: (scheduling_strategy.node_id, look, a))

        return SimpleNamespace(options=options)

    def wait(self, *_: Any, **__: Any) -> None:
        pass

    def get(self, call: tuple[str, Callable[..., Any], tuple[Any, ...]], timeout: float) -> Any:
        node, look, arguments = call
        self.asked.append(node)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(objects, "_OPENED", dict(objects._OPENED))
            self.different.get(node, lambda _: None)(patch)
            return look(*arguments)

    def on_other(self, change: Callable[[pytest.MonkeyPatch], None]) -> None:
        self.different[OTHER] = change


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRay:
    found = FakeRay()
    monkeypatch.setattr(nodes, "ray", found)
    monkeypatch.setattr(nodes, "connect", lambda _: None)
    monkeypatch.setattr(nodes, "is_private", lambda: False)
    monkeypatch.setattr(nodes, "own_versions", lambda: VERSIONS)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return found


def search(storage: str) -> Experiment:
    return load(None, [f"storage_path={storage}", "cluster.address=10.0.0.1:6379"])


def refused(storage: str) -> list[str]:
    """Return the lines that name nodes."""
    with pytest.raises(UserError) as caught:
        reach_storage(search(storage))
    first, *lines = str(caught.value).splitlines()
    assert first == "cluster: nodes cannot work on this run:"
    return lines


def test_nodes_that_can_are_asked_once_each(fake: FakeRay, tmp_path: Path) -> None:
    reach_storage(search(f"file://{tmp_path}/bucket"))
    assert fake.asked == [HEAD, OTHER]
    assert not [path for path in (tmp_path / "bucket").rglob("*") if path.is_file()]


def test_a_node_that_cannot_reach_the_storage(fake: FakeRay, tmp_path: Path) -> None:
    class Away:
        type_name = "s3"

        def open_output_stream(self, path: str) -> Any:
            raise OSError(f"{path}: could not connect to server (Request ID: 12)")

    uri = f"file://{tmp_path}/bucket"

    def cut_off(patch: pytest.MonkeyPatch) -> None:
        opened = objects.Objects(uri, Away(), "bucket")
        patch.setitem(objects._OPENED, (os.getpid(), uri), opened)

    fake.different = {HEAD: cut_off, OTHER: cut_off}
    (line,) = refused(uri)
    assert line == (
        f"  10.0.0.1 (aaaaaaaa), 10.0.0.2 (bbbbbbbb): storage_path: {uri}: cannot write "
        f".probe/probe: bucket/.probe/probe: could not connect to server."
    ), "two nodes with the same reason are one line"


def test_a_node_that_can_read_and_not_write(fake: FakeRay, tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/bucket"

    def stands_in_the_way(patch: pytest.MonkeyPatch) -> None:
        elsewhere = tmp_path / "other" / "bucket"
        elsewhere.mkdir(parents=True)
        (elsewhere / ".probe").write_text("a file, not a folder")
        opened = objects.Objects.open(uri)
        other = objects.Objects(uri, opened.filesystem, str(elsewhere))
        patch.setitem(objects._OPENED, (os.getpid(), uri), other)

    fake.on_other(stands_in_the_way)
    (line,) = refused(uri)
    start = f"  10.0.0.2 (bbbbbbbb): storage_path: {uri}: cannot write .probe/probe: "
    assert line.startswith(start), line


def test_a_node_without_a_place_for_what_it_fetches(fake: FakeRay, tmp_path: Path) -> None:
    """Otherwise its first trial would fail, when the teacher is already trained."""
    (tmp_path / "file").write_text("")
    fake.on_other(lambda patch: patch.setenv(CACHE_VARIABLE, str(tmp_path / "file")))
    (line,) = refused(f"file://{tmp_path}/bucket")
    assert line.startswith(f"  10.0.0.2 (bbbbbbbb): {tmp_path}/file/storages/")
    assert line.endswith(f"{CACHE_VARIABLE} names another folder.")


@pytest.mark.parametrize("scheme", ["file", "local"])
def test_a_node_with_a_storage_of_its_own(fake: FakeRay, tmp_path: Path, scheme: str) -> None:
    """Both machines have such a folder, in which each finds what it wrote itself."""
    uri = f"{scheme}://{tmp_path}/bucket"

    def elsewhere(patch: pytest.MonkeyPatch) -> None:
        filesystem = objects.Objects.open(uri).filesystem
        other = objects.Objects(uri, filesystem, str(tmp_path / "other"))
        patch.setitem(objects._OPENED, (os.getpid(), uri), other)

    fake.on_other(elsewhere)
    (line,) = refused(uri)
    assert line == (
        f"  10.0.0.2 (bbbbbbbb): storage_path: {uri}: it is not the storage that the command "
        f"writes to: every machine has its own. With several nodes it has to be one that all of "
        f"them reach (s3://bucket/prefix), or a folder that they share"
    )
    assert not [path for path in (tmp_path / "bucket").rglob("*") if path.is_file()]


def test_a_node_without_credentials_says_which_variables(fake: FakeRay) -> None:
    """moto requires no credentials, so the test also makes that node find no bucket."""

    def without(patch: pytest.MonkeyPatch) -> None:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        uri = next(uri for _, uri in objects._OPENED if uri.startswith("s3://bucket/probed"))
        opened = objects.Objects(uri, objects.Objects.open(uri).filesystem, "none")
        patch.setitem(objects._OPENED, (os.getpid(), uri), opened)

    fake.on_other(without)
    with s3_server() as where, pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        (line,) = refused(f"s3://bucket/probed{query(where)}")
    assert line.startswith("  10.0.0.2 (bbbbbbbb): storage_path: s3://bucket/probed")
    assert line.endswith("Not set in the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in line


@pytest.mark.parametrize("kind", ["uri", "folder"])
@pytest.mark.parametrize("name", list(VERSIONS))
def test_other_versions_are_listed_by_node(
    fake: FakeRay, tmp_path: Path, name: str, kind: str
) -> None:
    other = {**VERSIONS, name: "0.1"}
    fake.on_other(lambda patch: patch.setattr(nodes, "own_versions", lambda: other))
    prefix = "file://" if kind == "uri" else ""
    assert refused(f"{prefix}{tmp_path}/bucket") == [
        f"  10.0.0.2 (bbbbbbbb): other versions than here: {name} 0.1 (here {VERSIONS[name]})"
    ]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (GetTimeoutError(), "no answer within 120 s"),
        (WorkerCrashedError(), "The worker died unexpectedly while executing this task."),
    ],
)
def test_a_node_that_does_not_answer(
    fake: FakeRay, tmp_path: Path, error: Exception, expected: str
) -> None:
    def die(_: pytest.MonkeyPatch) -> None:
        raise error

    fake.on_other(die)
    (line,) = refused(f"file://{tmp_path}/bucket")
    assert line.startswith(f"  10.0.0.2 (bbbbbbbb): {expected}")


def test_a_folder_that_a_node_does_not_share(
    fake: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, here = tmp_path / "shared", Path.is_file
    reach_storage(search(str(shared)))
    assert list(shared.iterdir()) == []

    def not_there(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(Path, "is_file", lambda path: ".probe" not in path.name and here(path))

    fake.on_other(not_there)
    (line,) = refused(str(shared))
    assert line == (
        f"  10.0.0.2 (bbbbbbbb): storage_path: {shared}: it is not the folder that the command "
        f"writes to. With several nodes it has to be one that all of them share, or a URI "
        f"(s3://bucket/prefix)"
    )
    assert list(shared.iterdir()) == []


def test_a_folder_that_a_node_cannot_write(fake: FakeRay, tmp_path: Path) -> None:
    def read_only(patch: pytest.MonkeyPatch) -> None:
        def refuse(**_: Any) -> None:
            raise OSError(30, "Read-only file system")

        patch.setattr(nodes.tempfile, "NamedTemporaryFile", refuse)

    fake.on_other(read_only)
    assert refused(str(tmp_path)) == [
        f"  10.0.0.2 (bbbbbbbb): storage_path: {tmp_path}: cannot write there: "
        f"Read-only file system"
    ]


def test_nodes_of_a_cluster_that_a_script_has_joined_are_asked(
    fake: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `ray.init` before `krscale.search`: the settings name no cluster then."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    experiment = load(None, [f"storage_path={tmp_path}"])
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    reach_storage(experiment)
    assert not fake.asked
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    reach_storage(experiment)
    assert fake.asked == [HEAD, OTHER]


def test_a_folder_is_not_looked_for_where_there_is_one_node(fake: FakeRay, tmp_path: Path) -> None:
    fake.alive = (HEAD,)
    reach_storage(search(str(tmp_path / "runs")))
    assert not fake.asked
    assert not (tmp_path / "runs").exists()


def test_a_folder_is_not_looked_for_where_no_node_is_to_work(fake: FakeRay, tmp_path: Path) -> None:
    reach_storage(search(str(tmp_path / "runs")), on_nodes=False)
    assert not fake.asked
    reach_storage(search(f"file://{tmp_path}/bucket"), on_nodes=False)
    assert fake.asked == [HEAD, OTHER], "a URI is probed by all"


def test_a_folder_that_cannot_be_written_here_is_left_to_whoever_works_there(
    fake: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refuse)
    reach_storage(search(str(tmp_path)))
    assert fake.asked == [HEAD, OTHER], "versions are compared"
