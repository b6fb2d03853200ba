"""Measure the four claims of Knowledge Representing against opponents tuned for as long.

Every number comes from `krscale tune` itself: independent searches for every family of methods, on
each task with one teacher and one store. The same command continues when it is run again. Finished
searches are kept even without their run folders: `benchmarks/results/claims/` contains a small file
for each search, to be committed.

    python benchmarks/claims.py [--quick] [--dry-run] [--tasks glyphs] [--data cifar10=PATH ...]

Writes `benchmarks/results/claims.json`, `docs/claims.md` and its figures after every search; with
`--quick`, which uses only the embedded task unless `--tasks` names others, they are written to the
storage folder instead. `--page` writes page and figures again from the results.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parts.claims.families import CHEAP, FAMILIES, QUICK
from parts.claims.gathering import gather
from parts.claims.order import in_order
from parts.claims.page import write_page
from parts.claims.pictures import draw_figures
from parts.claims.plan import plan
from parts.claims.searching import search
from parts.claims.tasks import TASKS, TaskRun
from parts.measuring import ROOT

from krscale.cli.common import run_command
from krscale.errors import UserError
from krscale.files import read_json, write_json


def run(argv: Sequence[str]) -> int:
    """Run the searches that are not finished, and write the results so far."""
    arguments = _arguments(argv)
    if arguments.page:
        _write_page(arguments)
        return 0
    runs = _task_runs(arguments)
    here = [task_run for task_run in runs if not task_run.missing_data]
    if arguments.dry_run:
        print("\n".join(plan(here, arguments.families)))
        return 0
    for upcoming in in_order(here, arguments.families):
        if upcoming.is_kept:
            continue
        print(upcoming.title, flush=True)
        search(*upcoming, quiet=arguments.quiet)
        _write(arguments, runs)
    unfinished = [f"{t['name']}: {name}" for t in _write(arguments, runs)["tasks"]
                  for name in t["unfinished"]]  # fmt: skip
    if unfinished:
        print(f"unfinished: {', '.join(unfinished)}")
    return 0


def _task_runs(arguments: argparse.Namespace) -> list[TaskRun]:
    """Return the tasks to measure; print those whose data is missing.

    Raises:
        UserError: If tasks were named, and the data of one of them is missing.
    """
    runs = []
    for task in TASKS:
        if task.name not in (arguments.tasks or (CHEAP if arguments.quick else [task.name])):
            continue
        changes = (*(QUICK if arguments.quick else ()), *arguments.set)
        runs.append(TaskRun(task, arguments.storage.resolve(), arguments.data.get(task.name, ""),
                            changes, 1 if arguments.quick else arguments.searches))  # fmt: skip
    for task_run in runs:
        if missing := task_run.missing_data:
            text = (
                f"{task_run.task.name}: {missing}: not here; jobs/{task_run.task.job} says where "
                f"it comes from. --data {task_run.task.name}=PATH names it elsewhere."
            )
            if arguments.tasks:
                raise UserError(text)
            print(text, flush=True)
    return runs


def _write(arguments: argparse.Namespace, runs: Sequence[TaskRun]) -> dict[str, Any]:
    command = shlex.join(["python", "benchmarks/claims.py", *arguments.repeated])
    result = gather(runs, command)
    write_json(_result_path(arguments), result)
    _write_page(arguments)
    return result


def _write_page(arguments: argparse.Namespace) -> None:
    result = read_json(_result_path(arguments))
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


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: minutes, not hours")
    parser.add_argument("--dry-run", action="store_true", help="the plan and its cost, no more")
    parser.add_argument("--page", action="store_true", help="only draw the page again")
    parser.add_argument("--quiet", action="store_true", help="no live view")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="change any field of the jobs for all families")  # fmt: skip
    parser.add_argument("--families", nargs="+", default=[], choices=[f.name for f in FAMILIES],
                        help="only these searches")  # fmt: skip
    parser.add_argument("--tasks", nargs="+", choices=[t.name for t in TASKS],
                        help="only these tasks")  # fmt: skip
    parser.add_argument("--data", nargs="+", action=_Paths, default={}, metavar="TASK=PATH",
                        help="where the data of a task is, if not where its job says")  # fmt: skip
    parser.add_argument("--searches", type=int, default=2,
                        help="independent searches of every family (default: 2)")  # fmt: skip
    parser.add_argument("--storage", type=Path, help="folder of the runs")
    arguments = parser.parse_args(argv)
    # What a reader must type, without the folder of the runs and the part that was run last.
    arguments.repeated = [
        *(["--quick"] if arguments.quick else []),
        *(["--tasks", *arguments.tasks] if arguments.tasks else []),
        *(["--searches", str(arguments.searches)] if arguments.searches != 2 else []),
        *(part for change in arguments.set for part in ("--set", change)),
    ]
    if arguments.storage is None:
        arguments.storage = ROOT / "runs" / ("claims-quick" if arguments.quick else "claims")
    return arguments


class _Paths(argparse.Action):
    """Accepts any number of TASK=PATH."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the paths by task."""
        names = [task.name for task in TASKS]
        found = {}
        for value in values:
            name, _, path = value.partition("=")
            if name not in names or not path:
                parser.error(f"{option_string}: {value!r}: expected TASK=PATH, TASK one of {names}")
            found[name] = path
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), **found})


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
