"""Write docs/reliability.md from the records of the drills, as `make drills` does at its end.

python scripts/write_reliability.py build/drills.jsonl   # adds new records, writes the page
python scripts/write_reliability.py                      # writes the page from the kept records
python scripts/write_reliability.py --check              # exit code 1 if the page differs

The records of all drills are kept in `benchmarks/results/drills.json`. A drill that is run again
replaces its record; the record of a removed drill is dropped.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from krscale.files import read_json, write_json  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "drills.json"
COST = ROOT / "benchmarks" / "results" / "checked_reading.json"
PAGE = ROOT / "docs" / "reliability.md"
KINDS = (("fault", "faults survived"), ("bad input", "bad inputs tried"), ("load", "load held"))
PROPER_NAMES = {
    "cpu": "CPU", "mlflow": "MLflow", "rays": "Ray's", "ray": "Ray", "sigkill": "SIGKILL",
    "ui": "UI",
}  # fmt: skip
"""How words of a test's name are written in a heading."""
HEAD = """# What krscale survives

<!-- Written by scripts/write_reliability.py from benchmarks/results/drills.json; do not edit. -->

What was done to searches to break them, and what held. `make drills` does all of it again, with
real processes that are really killed; each drill says what it injects, what must hold and what
held, and one that does not hold fails.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Add new records, and write or compare the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, nargs="?", help="what --drill-record wrote")
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args(arguments)
    kept: dict[str, Any] = read_json(RESULTS) if RESULTS.exists() else {"drills": []}
    if given.records is not None:
        kept["drills"] = merged(kept["drills"], _new_records(given.records))
        write_json(RESULTS, {"drills": kept["drills"]})
    text = page(kept["drills"], read_json(COST) if COST.exists() else None)
    if given.check:
        return 0 if PAGE.read_text(encoding="utf-8") == text else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


def _new_records(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def merged(
    kept: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]], root: Path = ROOT
) -> list[dict[str, Any]]:
    """Return the newest record of each drill that still exists, sorted by file and name."""
    by_drill = {(each["module"], each["name"]): dict(each) for each in [*kept, *new]}
    return [record for _, record in sorted(by_drill.items()) if _exists(record, root)]


def _exists(record: Mapping[str, Any], root: Path) -> bool:
    file = root / record["module"]
    name = record["name"].partition("[")[0]
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return re.search(rf"^def {name}\(", text, re.M) is not None


def page(drills: Sequence[Mapping[str, Any]], cost: Mapping[str, Any] | None) -> str:
    """Return the whole page."""
    passed = [each for each in drills if each["passed"]]
    parts = [HEAD, _totals(drills, passed)]
    failed = [each for each in drills if not each["passed"]]
    if failed:
        parts.append(_section("did not hold", failed))
    for kind, title in KINDS:
        parts.append(_section(title, [each for each in passed if _main_kind(each) == kind]))
    if cost is not None:
        parts.append(_cost(cost))
    return "\n".join(part for part in parts if part)


def _totals(drills: Sequence[Mapping[str, Any]], passed: Sequence[Mapping[str, Any]]) -> str:
    rows = [("drills that held, of all", f"{len(passed)} of {len(drills)}")]
    for kind, title in KINDS:
        number = sum(each["number"] for one in passed for each in one["injections"] if
                     each["kind"] == kind)  # fmt: skip
        rows.append((title, f"{number:,}"))
    minutes = sum(each["seconds"] for each in drills) / 60
    rows.append(("minutes that all of them took", f"{minutes:.0f}"))
    rows += [("on", machine) for machine in sorted({each["machine"] for each in drills})]
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines) + "\n"


def _section(title: str, drills: Sequence[Mapping[str, Any]]) -> str:
    """Return a section with the drills in their order, all cases of a drill together."""
    cases: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for each in drills:
        cases.setdefault((each["module"], each["name"].partition("[")[0]), []).append(each)
    texts = [
        _drill(records) if len(records) == 1 else _cases(records) for records in cases.values()
    ]
    return f"## {title.capitalize()}\n\n" + "\n".join(texts) if texts else ""


def _main_kind(record: Mapping[str, Any]) -> str:
    """Return the kind under which a drill is listed: that of its first injection."""
    kind: str = record["injections"][0]["kind"]
    return kind


def _drill(records: Sequence[Mapping[str, Any]]) -> str:
    """Return a drill of one case as a list."""
    (record,) = records
    lines = [f"- injected: {_injected(record)}"]
    lines += [f"- {_verb(record)}: {text}" for text in _held(record)]
    lines += [f"- measured: {text}" for text in _figures(record)]
    return f"{_heading(records)}\n\n" + "\n".join(map(_plain, lines)) + "\n"


def _cases(records: Sequence[Mapping[str, Any]]) -> str:
    """Return a drill of several cases as a table with a row for each."""
    rows = ["| case | injected | held |", "|---|---|---|"]
    for record in records:
        held = [*_held(record), *_figures(record)]
        verb = "" if record["passed"] else f"{_verb(record)}: "
        cells = (_case(record), _injected(record), f"{verb}{'; '.join(held)}")
        rows.append(f"| {' | '.join(map(_plain, cells))} |")
    return f"{_heading(records)}\n\n" + "\n".join(rows) + "\n"


def _heading(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the name of a drill, and where, at which commits and how long it ran."""
    name = records[0]["name"].removeprefix("test_").partition("[")[0].replace("_", " ")
    if len(records) == 1 and (case := _case(records[0])):
        name += f" ({case})"
    name = name[0].upper() + name[1:]
    for written, meant in PROPER_NAMES.items():
        name = re.sub(rf"\b{written}\b", meant, name, flags=re.I)
    commits = " and ".join(f"`{each}`" for each in sorted({r["commit"][:12] for r in records}))
    seconds = sum(record["seconds"] for record in records)
    return f"### {_plain(name)}\n\n`{records[0]['module']}` at {commits}, {seconds:.0f} s"


def _case(record: Mapping[str, Any]) -> str:
    case: str = record["name"].partition("[")[2].removesuffix("]")
    return case


def _injected(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{each['number']:,} x {each['what']}" for each in record["injections"])


def _held(record: Mapping[str, Any]) -> list[str]:
    """Return what held; of a drill that failed, what had to hold."""
    return list(record["results"] if record["passed"] else record["required"])


def _verb(record: Mapping[str, Any]) -> str:
    return "held" if record["passed"] else "had to hold"


def _figures(record: Mapping[str, Any]) -> list[str]:
    return [f"{name}, {value:.3g} {unit}" for name, value, unit in record["figures"]]


def _plain(text: str) -> str:
    """Return a line escaped so that Markdown shows it literally."""
    return re.sub(r"([<>*_|\[\]])", r"\\\1", text)


def _cost(cost: Mapping[str, Any]) -> str:
    opening = 1000 * cost["seconds_to_open"]
    whole = 1000 * cost["seconds_to_compare_all"]
    size = sum(cost["bytes"].values()) / 1e6
    return (
        "## What the checks cost\n\n"
        f"`python benchmarks/checked_reading.py` at `{cost['commit'][:12]}` on {cost['machine']}: "
        f"to open data and store of {size:.1f} MB takes {opening:.1f} ms of CPU, to compare every "
        f"byte of them with its digest {whole:.1f} ms, {100 * cost['share_of_an_epoch']:.2f} % of "
        f"an epoch, once in a process (goal: at most 1 %).\n"
    )


if __name__ == "__main__":
    sys.exit(main())
