"""docs/reliability.md is what the drills recorded."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from running import ROOT


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    path = ROOT / "scripts" / "write_reliability.py"
    spec = importlib.util.spec_from_file_location("write_reliability", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(name: str, number: int = 1, passed: bool = True, **more: Any) -> dict[str, Any]:
    """What `drilling.Recorder` writes of a drill."""
    return {
        "name": name,
        "module": "drills.py",
        "injections": [{"what": "SIGKILL", "number": number, "kind": "fault"}],
        "required": ["all remain"],
        "results": ["all 12 remain"] if passed else [],
        "figures": [["restart", 8.1, "s"]],
        "seconds": 60.0,
        "passed": passed,
        "commit": "0123456789abcdef",
        "machine": "2 x A",
        **more,
    }


def test_the_page_is_what_the_records_say(writer: ModuleType) -> None:
    assert writer.main(["--check"]) == 0, "run python scripts/write_reliability.py"


def test_a_drill_is_counted_only_where_it_held(writer: ModuleType) -> None:
    inputs = [{"what": "a <pickle>", "number": 3, "kind": "bad input"}]
    drills = [
        record("test_a_killed_driver[2]", 50),
        record("test_broken", 7, passed=False),
        record("test_odd_files", injections=inputs),
    ]
    text = writer.page(drills, None)
    assert "| drills that held, of all | 2 of 3 |" in text
    assert "| faults survived | 50 |" in text
    assert "| bad inputs tried | 3 |" in text
    assert "### A killed driver (2)\n\n`drills.py` at `0123456789ab`, 60 s\n" in text
    assert "- injected: 50 x SIGKILL\n- held: all 12 remain\n- measured: restart, 8.1 s\n" in text
    assert "## Did not hold\n\n### Broken\n" in text
    assert "- had to hold: all remain\n" in text
    assert r"3 x a \<pickle\>" in text


def test_cases_of_a_drill_share_a_table(writer: ModuleType) -> None:
    drills = [record("test_a_ray[1|2]"), record("test_other"), record("test_a_ray[3]", 4)]
    text = writer.page(drills, None)
    assert "### A Ray\n\n`drills.py` at `0123456789ab`, 120 s\n" in text
    assert "| 1\\|2 | 1 x SIGKILL | all 12 remain; restart, 8.1 s |\n| 3 | 4 x SIGKILL |" in text
    failed = writer.page([record("test_a[1]", passed=False), record("test_a[2]")], None)
    assert "## Did not hold\n\n### A (1)\n" in failed
    assert "### A (2)\n" in failed


def test_records_are_replaced_and_go_with_their_test(writer: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "drills.py").write_text("def test_kept(drill):\n    pass\n")
    kept = [record("test_kept", 1), record("test_gone"), record("test_else", module="gone.py")]
    assert writer.merged(kept, [record("test_kept", 2)], tmp_path) == [record("test_kept", 2)]
    cases = [record("test_kept[a]"), record("test_kept[b]")]
    assert writer.merged(cases, [], tmp_path) == cases
