"""Every file that krscale writes, damaged in every way: one error that names it, never another."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from drilling import Drill
from finished_search import SETTINGS, without_ray
from mutations import mutate_json
from running import bounded_memory, in_process, overrides

from krscale.config import load
from krscale.data import open_data
from krscale.errors import UserError
from krscale.export import StudentCard, read_card
from krscale.files import read_json, write_json
from krscale.report import read_curve
from krscale.report.findings import read_insight
from krscale.runs.distill import StudentResult, read_result
from krscale.runs.experiment_file import last_start, read_experiment
from krscale.runs.folder import run_folder
from krscale.runs.origin import read_environment
from krscale.search.insight import find_insight
from krscale.search.studies.extending import finished_budgets
from krscale.search.studies.journal import Journal, refuse_lost_journal
from krscale.search.studies.size_resolver import StudentSizeResolver
from krscale.setup.networks import Networks
from krscale.setup.recipe import StoreRecipe
from krscale.setup.teacher import open_teacher
from krscale.store import KnowledgeStore
from krscale.store.manifest import read_plan, write_plan
from krscale.training.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.timeout(300)
NUM_FLIPS = 40


@pytest.fixture(scope="module")
def whole(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with one finished search, and an export's card, a student and a checkpoint."""
    storage = tmp_path_factory.mktemp("whole") / "storage"
    run = shutil.copytree(searched, storage) / "small"
    student = StudentResult(
        name="x", commit="c", method="kr", capacity="1/16", width=3, num_parameters=10, flops=20,
        latency_ms=0.5, num_workers=1, val_accuracy=0.5, test_accuracy=0.5,
        teacher_val_accuracy=0.75, weights=str(run / "student.safetensors"),
    )  # fmt: skip
    write_json(run / "student.json", asdict(student))
    write_json(run / "bound.json", read_json(run / "experiment.json")["bound"])
    card = StudentCard(
        model="resnet", width=3, options={}, num_parameters=10, flops=20, classes=("a", "b"),
        image_shape=(1, 8, 8), mean=(0.5,), std=(0.5,), accuracy={"val": 0.5, "test": 0.5},
        provenance={"run": "x"},
    )  # fmt: skip
    write_json(run / "export" / "student.json", card.content())
    save_checkpoint(run / "checkpoint", {"training": {"epoch": 1}, "metrics": {}})
    manifest = KnowledgeStore.open(
        next((storage / "cache" / "stores").glob("*/manifest.json")).parent
    ).manifest
    write_plan(run / "plan", manifest.plan)
    return storage


@dataclass(frozen=True)
class Case:
    """A file, by its pattern within a storage, and what reads it.

    `required` are the fields without which the file must be refused.
    """

    pattern: str
    read: Callable[[Path], Any]
    required: tuple[str, ...] = ()


def run_of(file: Path) -> Path:
    return next(parent for parent in file.parents if (parent / "cache").is_dir()) / "small"


def experiment_of(file: Path):
    return read_experiment(run_of(file))


def claim(file: Path) -> None:
    """Open the run's folder as a start of the run does."""
    storage = f"storage_path={file.parent.parent}"
    experiment = load(None, [*SETTINGS, "tracking.enabled=false", storage])
    with run_folder(experiment, read_json(file.with_name("bound.json"))):
        pass


def teacher_of(file: Path) -> None:
    experiment = experiment_of(file)
    data = open_data(next((Path(experiment.storage_path) / "cache" / "data").glob("digits-*")))
    open_teacher(experiment, data, file.parent)


def splits_of(file: Path) -> None:
    data = open_data(file.parent)
    for name in data.num_samples:
        data.split(name)


@functools.cache
def networks_of(run: Path) -> Networks:
    """Resolve the networks once for the hundreds of times that a file is read."""
    experiment = read_experiment(run)
    data = open_data(next((Path(experiment.storage_path) / "cache" / "data").glob("digits-*")))
    return Networks.resolve(experiment, data)


def latencies_of(file: Path) -> None:
    sizes = StudentSizeResolver(networks_of(file.parent))
    sizes.keep_latencies(file)
    assert sizes.latency_ms("1/16", {}) >= 0.0


def journal_of(file: Path) -> None:
    refuse_lost_journal(file.parent)
    find_insight(file.parent)
    Journal(file)


CASES = {
    "experiment": Case("small/experiment.json", lambda f: read_experiment(f.parent),
                       ("experiment", "bound")),
    "where it was": Case("small/experiment.json", lambda f: last_start(f.parent), ("experiment",)),
    "start": Case("small/experiment.json", claim, ("experiment", "bound")),
    "environment": Case("small/environment.json", lambda f: read_environment(f.parent)),
    "curve": Case("small/curve.json", lambda f: read_curve(f.parent),
                  ("name", "commit", "data", "teacher", "sizes", "pareto")),
    "insight": Case("small/insight.json", lambda f: read_insight(f.parent), ("name", "studies")),
    "budgets": Case("small/finished.json", lambda f: finished_budgets(f.parent),
                    ("search.trials_per_size", "search.num_final_seeds")),
    "latencies": Case("small/latency.json", latencies_of),
    "student": Case("small/student.json", lambda f: read_result(f.parent),
                    ("name", "method", "val_accuracy", "weights")),
    "card": Case("small/export/student.json", lambda f: read_card(f.parent),
                 ("format", "architecture", "preprocessing", "classes", "accuracy", "provenance")),
    "checkpoint": Case("small/checkpoint/manifest.json", lambda f: load_checkpoint(f.parent),
                       ("format", "files")),
    "data": Case("cache/data/*/manifest.json", splits_of,
                 ("format", "fingerprint", "classes", "image_shape", "num_samples", "sha256")),
    "teacher": Case("cache/teachers/*/facts.json", teacher_of,
                    ("fingerprint", "taps", "information_gain", "histograms", "width")),
    "gains": Case("cache/teachers/*/gains-grid-4.json", teacher_of, ("information_gain",)),
    "store": Case("cache/stores/*/manifest.json", lambda f: KnowledgeStore.open(f.parent),
                  ("format", "plan", "encoding_error", "shards")),
    "plan": Case("small/plan/plan.json", lambda f: read_plan(f.parent),
                 ("format", "key", "num_views", "num_samples", "shard_rows", "layout")),
}  # fmt: skip
BINARY = {
    "probes": Case("cache/teachers/*/probes-grid-4.pt", teacher_of),
    "weights": Case("cache/teachers/*/teacher.safetensors", teacher_of),
    "journal": Case("small/journal.log", journal_of),
}


def damages(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield damages that must be refused in any file: a description and the content."""
    yield "cut at half", content[: len(content) // 2]
    yield "emptied", b""
    yield "garbage", bytes(random.Random(0).randbytes(max(len(content), 64)))
    yield "zeros", bytes(len(content))
    yield "Latin-1", "é".encode("latin-1") + content


def damaged_json(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield contents with changed fields, which may or may not be refused."""
    for name in content:
        yield f"without {name}", {key: value for key, value in content.items() if key != name}
        for value in (None, [], {}, "text", -1, 3.5, True, [None], {"a": []}, 10**30):
            yield f"{name} = {value!r:.20}", {**content, name: value}
    for value in (None, [], "text", 3, [content]):
        yield f"all of it = {value!r:.20}", value


@pytest.fixture
def storage(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "storage"))


def outcome(case: Case, file: Path, what: str) -> bool:
    """Whether the reader refuses the file; any error but a `UserError` naming it fails the test."""
    try:
        case.read(file)
    except UserError as error:
        found = str(error)
    except Exception as error:
        raise AssertionError(f"{file.name}, {what}: {type(error).__name__}: {error}") from error
    else:
        return False
    assert str(file) in found or str(file.parent) in found, f"{what}: {found}"
    return True


@pytest.mark.parametrize("name", [*CASES, *BINARY])
def test_a_damaged_file_is_one_error_that_names_it(name: str, storage: Path) -> None:
    case = (CASES | BINARY)[name]
    file = next(storage.glob(case.pattern))
    content = file.read_bytes()
    assert not outcome(case, file, "whole")
    content = file.read_bytes()  # a start of the run rewrites some of the files
    for what, other in damages(content):
        if name == "journal" and what in ("cut at half", "zeros"):
            continue  # as a crash leaves it: lines without an end
        file.write_bytes(other)
        assert outcome(case, file, what), f"{what} is read as if it were whole"
    draw = random.Random(1)
    for _ in range(NUM_FLIPS):
        flipped = bytearray(content)
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        file.write_bytes(flipped)
        refused = outcome(case, file, "a bit flipped")
        assert refused or name == "journal", "its lines have checksums, whose name may be hit"
    file.write_bytes(content)
    os.truncate(file, 10**12)
    with bounded_memory():
        assert outcome(case, file, "grown to a terabyte")
    file.unlink()
    file.mkdir()
    outcome(case, file, "a folder in its place")
    file.rmdir()
    os.mkfifo(file)
    outcome(case, file, "a named pipe in its place")


@pytest.mark.parametrize("name", CASES)
def test_fields_that_are_missing_or_of_another_type(name: str, storage: Path) -> None:
    case = CASES[name]
    file = next(storage.glob(case.pattern))
    case.read(file)
    content = read_json(file)  # and written back without a checksum, as by an older krscale
    assert set(case.required) <= set(content)
    for what, other in damaged_json(content):
        file.write_text(json.dumps(other))
        refused = outcome(case, file, what)
        missing = what.removeprefix("without ")
        assert refused or missing not in case.required, what


def test_fields_within_fields(storage: Path) -> None:
    """Change fields one level down, where most of a store's manifest and of an experiment is."""
    for name in ("store", "plan", "card", "curve", "experiment", "data"):
        case = CASES[name]
        file = next(storage.glob(case.pattern))
        content = read_json(file)
        for key, value in content.items():
            inner = value[0] if isinstance(value, list) and value else value
            if not isinstance(inner, dict):
                continue
            for what, other in damaged_json(inner):
                changed = [other, *value[1:]] if isinstance(value, list) else other
                file.write_text(json.dumps({**content, key: changed}))
                outcome(case, file, f"{name}.{key}: {what}")


@pytest.mark.parametrize(
    "number", [8, pytest.param(1500, marks=[pytest.mark.drill, pytest.mark.timeout(900)])]
)
@pytest.mark.parametrize("name", [*CASES, "journal"])
def test_records_of_an_older_krscale_changed_anywhere(
    name: str, number: int, storage: Path, drill: Drill
) -> None:
    """They lack the checksums by which any change of a newer record is found."""
    drill.must_hold("one error in krscale's own words for each, or it is read")
    case = (CASES | BINARY)[name]
    file = next(storage.glob(case.pattern))
    if name == "journal":
        content = re.sub(rb',"crc":\d+\}', b"}", file.read_bytes())
    else:
        content = json.dumps(read_json(file), indent=2).encode()
    refused = 0
    for seed in range(number):
        file.write_bytes(mutate_json(content, random.Random(f"{name}{seed}")))
        try:
            case.read(file)
        except UserError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{name} {seed}: {type(error).__name__}: {error}") from error
    drill.injected(f"mutated {file.name}", number, kind="bad input")
    drill.held(f"{refused} refused, {number - refused} read")


def kinds_of_entries(lines: list[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the first line of every kind of entry, and its content."""
    seen: set[tuple[str, ...]] = set()
    for number, line in enumerate(lines):
        entry = json.loads(line)
        kind = (str(entry["op_code"]), *entry, *entry.get("user_attr", {}))
        if kind not in seen:
            seen.add(kind)
            yield number, entry


def changed_entries(entry: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the entry with changed fields, as every other kind, and changed within a field."""
    yield from damaged_json(entry)
    for kind in range(-1, 12):
        yield f"of kind {kind}", {**entry, "op_code": kind}
    for field, inner in entry.items():
        if isinstance(inner, dict):
            for what, other in damaged_json(inner):
                yield f"{field}: {what}", {**entry, field: other}


def test_entries_of_a_journal_without_checksums(storage: Path) -> None:
    """Change one entry of an older krscale's journal in every way, and leave all others."""
    case = BINARY["journal"]
    file = next(storage.glob(case.pattern))
    lines = re.sub(rb',"crc":\d+\}', b"}", file.read_bytes()).splitlines()
    refused = 0
    for number, entry in kinds_of_entries(lines):
        for what, other in changed_entries(entry):
            changed = [*lines[:number], json.dumps(other).encode(), *lines[number + 1 :]]
            file.write_bytes(b"\n".join(changed) + b"\n")
            refused += outcome(case, file, f"line {number + 1}: {what}")
    assert refused > 100


def call(command: str, *arguments: str) -> int:
    return in_process(command)(arguments)


@pytest.mark.parametrize(
    ("command", "arguments", "pattern"),
    [
        ("report", ["RUN"], "small/curve.json"),
        ("pick", ["RUN", "--max-params", "1M", "--no-register", "--quiet"], "small/curve.json"),
        ("pick", ["RUN", "--max-params", "1M", "--no-register", "--quiet"],
         "small/experiment.json"),
        ("store", ["info", "RUN"], "small/experiment.json"),
        ("store", ["info", "RUN"], "cache/stores/*/manifest.json"),
        ("store", ["info", "RUN"], "cache/teachers/*/facts.json"),
        ("store", ["info", "RUN"], "cache/data/*/manifest.json"),
        ("teach", ["SETTINGS"], "cache/teachers/*/facts.json"),
        ("teach", ["SETTINGS"], "cache/stores/*/manifest.json"),
        ("tune", ["SETTINGS"], "small/experiment.json"),
        ("tune", ["SETTINGS"], "small/latency.json"),
        ("tune", ["SETTINGS", "--set", "search.trials_per_size=+1"], "small/finished.json"),
    ],
)  # fmt: skip
def test_a_command_ends_with_the_error(
    command: str,
    arguments: list[str],
    pattern: str,
    storage: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = next(storage.glob(pattern))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    settings = overrides(*SETTINGS, "tracking.enabled=false", f"storage_path={storage}")
    places = {"RUN": [str(storage / "small")], "SETTINGS": [*settings, "--quiet"]}
    given = [part for word in arguments for part in places.get(word, [word])]
    with without_ray():
        assert call(command, *given) == 2
    err = capsys.readouterr().err
    assert f"{file}: damaged: line" in err
    assert "Traceback" not in err


def test_the_page_of_a_run_says_what_it_could_not_read(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("environment.json", "experiment.json", "insight.json"):
        file = storage / "small" / name
        file.write_bytes(file.read_bytes()[:20])
    assert call("report", str(storage / "small")) == 0
    out, err = capsys.readouterr()
    assert "report.html" in out
    assert f"{storage / 'small' / 'environment.json'}: damaged" in err
    page = (storage / "small" / "report.html").read_text()
    assert "experiment.json: damaged" in page
    assert "insight.json: damaged" in page


class TestJournal:
    def journal(self, storage: Path) -> Path:
        return storage / "small" / "journal.log"

    def tune(self, storage: Path) -> int:
        settings = overrides(*SETTINGS, "tracking.enabled=false", f"storage_path={storage}")
        with without_ray():
            return call("tune", *settings, "--quiet")

    @pytest.mark.parametrize("checksums", [True, False])
    def test_a_damaged_line_is_named_and_the_command_mends_it(
        self, storage: Path, checksums: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import subprocess

        path = self.journal(storage)
        content = path.read_bytes()
        if not checksums:  # as older versions wrote it
            content = re.sub(rb',"crc":\d+\}', b"}", content)
        lines = content.splitlines(keepends=True)
        at = len(lines) // 2
        for broken in (lines[at][:10] + b"\n", lines[at][:-1], b"\xff" + lines[at], b"[]\n"):
            path.write_bytes(b"".join([*lines[:at], broken, *lines[at + 1 :]]))
            with pytest.raises(UserError, match=re.escape(f"{path}: damaged: line {at + 1} of ")):
                Journal(path)
            assert call("insight", str(storage / "small")) == 2
            assert f"{path}: damaged: line {at + 1} of " in capsys.readouterr().err
        assert self.tune(storage) == 2
        err = capsys.readouterr().err
        assert f"{path}: damaged: line {at + 1} of " in err
        command = err[err.index("cp ") :].strip()
        subprocess.run(["sh", "-c", command], check=True)
        assert path.read_bytes() == b"".join(lines[:at])
        assert self.tune(storage) == 0
        err = capsys.readouterr().err
        assert "fewer trials than when its search finished" in err
        assert len(find_insight(storage / "small").studies) == 2

    def test_a_changed_value_is_found_by_its_checksum(self, storage: Path) -> None:
        path = self.journal(storage)
        content = path.read_bytes()
        number = re.search(rb'"val/accuracy":0\.(\d)', content)
        assert number is not None
        other = b"1" if number[1] != b"1" else b"2"
        path.write_bytes(content[: number.start(1)] + other + content[number.end(1) :])
        with pytest.raises(UserError, match=r"journal\.log: damaged: line \d+ .*its checksum"):
            Journal(path)

    @pytest.mark.parametrize("content", [b"", b'{"op_code":0,"wor', None])
    def test_a_lost_journal_is_not_searched_anew_in_silence(
        self, storage: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = self.journal(storage)
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert self.tune(storage) == 2
        err = capsys.readouterr().err
        assert f"{path}: damaged: it is {'missing' if content is None else 'empty'}" in err
        assert "curve.json, finished.json" in err
        assert read_curve(storage / "small").name == "small"

    def test_half_a_last_line_is_a_crash_and_goes_on(self, storage: Path) -> None:
        path = self.journal(storage)
        content = path.read_bytes()
        path.write_bytes(content + b'{"op_code":4,"wor')
        assert self.tune(storage) == 0
        assert path.read_bytes().startswith(content)


def test_a_moved_folder_is_read_where_it_is(storage: Path, searched: Path) -> None:
    """Paths that are read lie in the storage where the run is now, not where it was made."""
    run = storage / "small"
    assert read_experiment(run).storage_path == str(storage)
    assert str(searched) in (run / "experiment.json").read_text()
    assert read_result(run).weights == str(run / "student.safetensors")
    recipe = StoreRecipe.find(read_experiment(run))
    assert recipe.path.is_relative_to(storage)
    assert recipe.open().path.is_relative_to(storage)
