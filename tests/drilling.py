"""The record of every drill: what it injected, what had to hold, what held.

A drill is a test marked `drill` (`make drills` runs them all) that takes the fixture `drill`:

    @pytest.mark.drill
    def test_a_killed_driver(drill: Drill, tmp_path: Path) -> None:
        drill.must_hold("exactly 12 trials, none doubled")
        for moment in moments:
            kill_and_start_again(moment)
            drill.injected("SIGKILL to the driver")          # counted: "50 x SIGKILL to the driver"
        assert found == 12
        drill.held("12 trials after 50 kills, none doubled")  # after the assertions it sums up
        drill.measured("longest restart", 8.1, "s")           # a figure for the page; if any

Every `must_hold` needs a `held`, in the same order; a drill that passes without them fails.
Pytest prints the three at the end of the drill and, with `--drill-record FILE`, appends them as one
line of JSON, from which `scripts/write_reliability.py` writes docs/reliability.md.

The short form of a drill in the normal suite is the same test with a smaller number:

    @pytest.mark.parametrize("kills", [2, pytest.param(200, marks=pytest.mark.drill)])
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from parts.measuring import commit, machine

Kind = Literal["fault", "bad input", "load"]
"""What is counted on the page: faults survived, bad inputs tried, load held."""


@dataclass
class Drill:
    """What one drill injected, what had to hold, and what held.

    Attributes:
        name: The test's function, e.g. `test_a_killed_driver`.
        module: Its file, from the repository's root.
        injections: Count of every kind and text.
        required: What had to hold.
        results: What held, one for each of `required`.
        figures: What was measured on the way: name, value, unit.
    """

    name: str
    module: str
    injections: dict[tuple[Kind, str], int] = field(default_factory=dict)
    required: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    figures: list[tuple[str, float, str]] = field(default_factory=list)

    def injected(self, what: str, number: int = 1, kind: Kind = "fault") -> None:
        """Count what was done to the system: `number` more of `what`."""
        self.injections[kind, what] = self.injections.get((kind, what), 0) + number

    def must_hold(self, what: str) -> None:
        """State what has to hold; call this at the start of the drill."""
        self.required.append(what)

    def held(self, what: str) -> None:
        """State what held; call this after the assertions that show it."""
        self.results.append(what)

    def measured(self, name: str, value: float, unit: str) -> None:
        """Keep a figure for the page."""
        self.figures.append((name, value, unit))

    def record(self, seconds: float) -> dict[str, Any]:
        """Return all of it as plain values for JSON."""
        found = asdict(self)
        found["injections"] = [
            {"what": what, "number": number, "kind": kind}
            for (kind, what), number in self.injections.items()
        ]
        return {**found, "seconds": round(seconds, 1)}


@pytest.fixture
def drill(request: pytest.FixtureRequest) -> Iterator[Drill]:
    """Give a test its `Drill`; afterwards check that it is complete, and record it."""
    path = request.node.path.relative_to(request.config.rootpath)
    found = Drill(request.node.name, path.as_posix())
    began = time.monotonic()
    yield found
    request.node.user_properties.append(("drill", found.record(time.monotonic() - began)))
    passed = request.node.stash.get(_PASSED, False)
    if passed and not (found.required and found.injections):
        pytest.fail("a drill says what it injects and what must hold: see tests/drilling.py")
    if passed and len(found.results) != len(found.required):
        pytest.fail(f"{len(found.required)} things had to hold, {len(found.results)} are said to")


_PASSED = pytest.StashKey[bool]()


def remember_outcome(item: pytest.Item, report: pytest.TestReport) -> None:
    """Store whether the test itself passed, which the fixture reads when it ends."""
    if report.when == "call":
        item.stash[_PASSED] = report.passed


class Recorder:
    """Prints every drill as it ends, and appends it to the file of `--drill-record`.

    With several processes it works in the one that gathers the reports. The short forms in the
    normal suite are not printed.
    """

    def __init__(self, config: pytest.Config) -> None:
        given = config.getoption("--drill-record")
        self._path = Path(given) if given else None
        self._asked_for = bool(given) or "drill" in config.option.markexpr
        self._plugins = config.pluginmanager
        self._failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print and append the record of a drill, which the report of its teardown holds."""
        if report.failed:
            self._failed.add(report.nodeid)
        record = dict(report.user_properties).get("drill")
        if report.when != "teardown" or not isinstance(record, dict) or not self._asked_for:
            return
        record = {**record, "passed": report.nodeid not in self._failed, **where()}
        reporter = self._plugins.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line("\n" + as_text(record))
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


def where() -> dict[str, str]:
    """Return the commit and the machine that a record belongs to."""
    return {"commit": commit(), "machine": machine(torch.device("cpu"))}


def as_text(record: dict[str, Any]) -> str:
    """Return the lines that a drill prints."""
    injected = [f"{each['number']} x {each['what']}" for each in record["injections"]]
    figures = [f"{name}: {value:g} {unit}" for name, value, unit in record["figures"]]
    parts = [("injected", injected), ("had to hold", record["required"])]
    parts += [("held", record["results"]), ("measured", figures)]
    lines = [f"{title:>12}: {text}" for title, texts in parts for text in texts]
    verdict = "passed" if record["passed"] else "FAILED"
    return "\n".join([f"drill {record['name']} {verdict}, {record['seconds']:g} s", *lines])
