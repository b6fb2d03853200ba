"""What `tune` and `--dry-run` refuse alike, before the teacher trains."""

import importlib.util
from pathlib import Path

import pytest
from running import in_process, overrides

from krscale.config import load
from krscale.data import describe_data
from krscale.errors import UserError
from krscale.files import write_json
from krscale.runs.aside import _MARK, ORIGIN_FILE
from krscale.search.check import check_search, known_latencies
from krscale.search.plan import describe_plan
from krscale.search.studies.size_resolver import LATENCY_FILE
from krscale.setup.networks import Networks
from krscale.setup.sizes import ladder_sizes

run = in_process("tune")
CONTINUOUS = '[plain]\n"train.learning_rate" = "default"\n'
SMALL = ("search.methods=['plain']", "ladder.capacities=['1/64', '1/4']")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("search.sampler=grid",), "'grid' needs a finite number of values"),
        (("search.sampler=cmaes",), "'cmaes' needs the package cmaes"),
        (("search.max_parameters=10",), "no size is left to search"),
        (("tracking.uri=htp://host",), "Did you mean 'http'?"),
        (("tracking.uri=a/folder",), "MLflow no longer keeps runs in folders"),
        (("train.num_workers=2", "search.gpus_per_trial=0.5"), "needs a GPU of its own"),
    ],
)
def test_a_search_that_cannot_be_is_refused_by_both(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: tuple[str, ...],
    message: str,
) -> None:
    """Fails if it is refused only after there is a teacher or a journal."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == "cmaes" else find(name)
    )
    path = tmp_path / "space.toml"
    path.write_text(CONTINUOUS)
    given = (*SMALL, f"search.space={path}", f"storage_path={tmp_path / 'runs'}", *settings)
    with pytest.raises(UserError, match=message):
        describe_plan(load(None, given))
    assert run([*overrides(*given), "--quiet"]) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("journal.log"))
    assert not (tmp_path / "runs" / "cache" / "teachers").exists()


def test_a_size_of_a_run_stays_within_the_latency_that_was_measured_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured in a busier moment, it was left out of a search that went on, and of its curve."""
    monkeypatch.setattr("krscale.search.studies.size_resolver.latency_ms", lambda *_: 9.0)
    config = load(None, (*SMALL, "search.max_latency_ms=5", f"storage_path={tmp_path}"))
    networks = Networks.resolve(config, describe_data(config.data, config.cache_path))
    sizes = ladder_sizes(networks)
    with known_latencies(config) as path, pytest.raises(UserError, match="no size is left"):
        check_search(networks, sizes, print, path)
    write_json(config.run_path / LATENCY_FILE, {"1/64": 1.0, "1/4": 4.0})
    with known_latencies(config) as path:
        assert check_search(networks, sizes, print, path).sizes == sizes
    assert "size 1/64" in describe_plan(config)
    write_json(config.run_path / ORIGIN_FILE, {_MARK: "earlier-1"})
    with known_latencies(config) as path:
        assert path is None, "they are of other data"
    with known_latencies(load(None, SMALL)) as path:
        assert path is None, "no limit"


@pytest.mark.parametrize(
    "setting", ["storage_path=s4://bucket/runs", "tracking.uri=htp://host", "tracking.uri=x"]
)
def test_an_address_that_cannot_be_is_refused_before_data_is_read(
    setting: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Reading the images of a large data set takes an hour."""
    monkeypatch.setenv("KRSCALE_CACHE_PATH", str(tmp_path / "cache"))
    given = (*SMALL, f"storage_path={tmp_path / 'runs'}", "data.source=own:missing", setting)
    for more in ("--dry-run", "--quiet"):
        assert run([*overrides(*given), more]) == 2
        error = capsys.readouterr().err
        assert setting.partition("=")[0] in error
        assert "data.source" not in error


def test_a_missing_gpu_is_refused_before_data_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run on a machine without a GPU plans a search for one that has it."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    given = (*SMALL, f"storage_path={tmp_path}", "data.source=own:missing", "train.device=cuda")
    assert run([*overrides(*given), "--quiet"]) == 2
    assert "torch sees no GPU on this machine" in capsys.readouterr().err


def test_a_size_beyond_a_limit_is_not_planned() -> None:
    lines = describe_plan(load(None, (*SMALL, "search.max_parameters=100000"))).splitlines()
    assert any(
        line.startswith("  size 1/4 is left out:") and "search.max_parameters = 100,000" in line
        for line in lines
    )
    assert any(line.startswith("  1 studies x") for line in lines)
