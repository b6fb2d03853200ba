"""Measure the four claims of Knowledge Representing against opponents tuned as long.

Every number comes from `krscale tune` itself: one search per family of methods, on one task, with
one teacher and one store. The same command again continues; what is finished stays.

    python benchmarks/claims.py [--quick] [--dry-run] [--set train.num_epochs=30]

Writes `benchmarks/results/claims.json`, `docs/claims.md` and its figures after every family; with
`--quick` they go to the storage folder instead. `--page` draws page and figures from the results
again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parts.claims.cost import family_cost, teacher_seconds, training_seconds
from parts.claims.families import FAMILIES, QUICK, Family
from parts.claims.gathering import gather, partners
from parts.claims.page import write_page
from parts.claims.pictures import draw_figures
from parts.claims.searching import search
from parts.measuring import ROOT

from krscale.cli.common import run_command
from krscale.files import write_json


def run(argv: Sequence[str]) -> int:
    """Search what is not finished, and write what is known so far."""
    arguments = _arguments(argv)
    storage: Path = arguments.storage.resolve()
    changes = [*(QUICK if arguments.quick else ()), *arguments.set]
    families = [f for f in FAMILIES if not arguments.families or f.name in arguments.families]
    if arguments.page:
        _write_page(arguments)
        return 0
    if arguments.dry_run:
        print(_plan(families, storage, changes))
        return 0
    for family in families:
        print(f"{family.name}: {', '.join(family.methods)}", flush=True)
        search(family, storage, changes, quiet=arguments.quiet)
        _write(arguments, storage, changes)
    for family in partners(storage, changes):
        print(f"{family.name}: {family.label}", flush=True)
        search(family, storage, changes, quiet=arguments.quiet)
    result = _write(arguments, storage, changes)
    if result["unfinished"]:
        print(f"unfinished: {', '.join(result['unfinished'])}")
    return 0


def _write(arguments: argparse.Namespace, storage: Path, changes: Sequence[str]) -> dict[str, Any]:
    command = shlex.join(["python", "benchmarks/claims.py", *arguments.repeated])
    result = gather(storage, changes, command)
    write_json(_result_path(arguments), result)
    _write_page(arguments)
    return result


def _write_page(arguments: argparse.Namespace) -> None:
    result = json.loads(_result_path(arguments).read_text(encoding="utf-8"))
    folder = arguments.storage if arguments.quick else ROOT / "docs"
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    figures = draw_figures(result, images)
    write_page(result, [path.relative_to(folder) for path in figures], folder / "claims.md")
    print(f"{_result_path(arguments)}, {folder / 'claims.md'}", flush=True)


def _result_path(arguments: argparse.Namespace) -> Path:
    if arguments.quick:
        return Path(arguments.storage) / "claims.json"
    return ROOT / "benchmarks" / "results" / "claims.json"


def _plan(families: Sequence[Family], storage: Path, changes: Sequence[str]) -> str:
    """Say what would run and what it would cost, from a few timed steps of every network."""
    first = families[0].experiment(storage, changes)
    seconds = training_seconds(first)
    total = teacher_seconds(first)
    each = ", ".join(f"{found:.1f}" for found in seconds)
    lines = [
        f"one training at each size, smallest first: {each} CPU seconds",
        f"teacher: {total:.0f} CPU seconds",
    ]
    for family in families:
        cost = family_cost(family, family.experiment(storage, changes), seconds)
        total += cost.seconds
        lines.append(
            f"{family.name}: {', '.join(family.methods)}: {cost.num_trials} trials and "
            f"{cost.num_finals} final trainings, {cost.seconds:.0f} CPU seconds"
        )
    search_config = first.search
    finals = (search_config.num_final_seeds + 1) * sum(seconds)
    lines.append(f"C1: the other granularity at every size: {finals:.0f} CPU seconds")
    lines.append(f"together: {(total + finals) / 3600:.2f} CPU hours; divide by the cores")
    return "\n".join(lines)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: minutes, not hours")
    parser.add_argument("--dry-run", action="store_true", help="the plan and its cost, no more")
    parser.add_argument("--page", action="store_true", help="only draw the page again")
    parser.add_argument("--quiet", action="store_true", help="no live view")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="change any field of jobs/claims.toml for all families")  # fmt: skip
    parser.add_argument("--families", nargs="+", choices=[f.name for f in FAMILIES],
                        help="only these searches")  # fmt: skip
    parser.add_argument("--storage", type=Path, help="folder of the runs")
    arguments = parser.parse_args(argv)
    # What another reader must type: not where the runs are kept, nor which part was run last.
    arguments.repeated = [
        *(["--quick"] if arguments.quick else []),
        *(part for change in arguments.set for part in ("--set", change)),
    ]
    if arguments.storage is None:
        arguments.storage = ROOT / "runs" / ("claims-quick" if arguments.quick else "claims")
    return arguments


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
