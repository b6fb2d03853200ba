"""The drills' own record: what is printed and written, and that an incomplete drill fails."""

import json
from pathlib import Path

import pytest
from running import ROOT

pytest_plugins = ["pytester"]

DRILLS = """
import pytest

def test_said(drill):
    drill.must_hold("all five remain")
    for _ in range(5):
        drill.injected("SIGKILL to the driver")
    drill.injected("a pickle with code", 3, "bad input")
    drill.held("all five remain")
    drill.measured("restart", 8.1, "s")

def test_broken(drill):
    drill.must_hold("all five remain")
    drill.injected("SIGKILL to the driver")
    assert False

def test_silent(drill):
    drill.must_hold("all five remain")
    drill.injected("SIGKILL to the driver")

def test_without_injection(drill):
    drill.must_hold("all five remain")
    drill.held("all five remain")
"""
TESTS = ROOT / "tests"


@pytest.fixture
def records(pytester: pytest.Pytester) -> tuple[dict[str, dict], str]:
    """The records of the drills above, and what pytest printed."""
    pytester.makeconftest((TESTS / "conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile(
        drilling=(TESTS / "drilling.py").read_text(encoding="utf-8"), test_them=DRILLS
    )
    found = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--drill-record", "out/d.jsonl")
    found.assert_outcomes(passed=3, failed=1, errors=2)
    lines = Path("out/d.jsonl").read_text(encoding="utf-8").splitlines()
    return {each["name"]: each for each in map(json.loads, lines)}, found.stdout.str()


def test_every_drill_prints_and_records_what_was_injected_and_held(
    records: tuple[dict[str, dict], str],
) -> None:
    by_name, printed = records
    assert {name: each["passed"] for name, each in by_name.items()} == {
        "test_said": True,
        "test_broken": False,
        "test_silent": False,
        "test_without_injection": False,
    }
    said = by_name["test_said"]
    assert said["injections"] == [
        {"what": "SIGKILL to the driver", "number": 5, "kind": "fault"},
        {"what": "a pickle with code", "number": 3, "kind": "bad input"},
    ]
    assert (said["required"], said["results"]) == (["all five remain"], ["all five remain"])
    assert len(said["commit"].partition("+")[0]) == 40
    assert said["figures"] == [["restart", 8.1, "s"]]
    for line in (
        "drill test_said passed",
        "    injected: 5 x SIGKILL to the driver",
        " had to hold: all five remain",
        "        held: all five remain",
        "    measured: restart: 8.1 s",
        "drill test_broken FAILED",
    ):
        assert line in printed
    assert "1 things had to hold, 0 are said to" in printed
