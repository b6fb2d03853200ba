"""`python -m krscale.report RUN [RUN ...]`: tables, figure and page of finished runs."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from krscale.config import fingerprint, load
from krscale.config.experiment import RunName
from krscale.errors import UserError
from krscale.files import damaged, write_json
from krscale.foreign import read_bounded, user_path
from krscale.runs.experiment_file import EXPERIMENT_FILE, read_experiment
from krscale.runs.folder import find_run, storage_folder
from krscale.runs.kinds import require_search
from krscale.runs.origin import read_environment
from krscale.showing import show, terminal

if TYPE_CHECKING:
    from krscale.report import Curve, ShownRun

FIGURE_FILE = "curve.png"
INTERACTIVE_FILE = "curve.html"
CSV_FILE = "curve.csv"
PAGE_FILE = "report.html"
JSON_FILE = "report.json"
Found = TypeVar("Found")
_OF_A_RUN = (EXPERIMENT_FILE, "curve.json")

DESCRIPTION = (
    "Print test accuracy versus capacity of finished runs, and write the figure, "
    f"{CSV_FILE} and {PAGE_FILE}, which explains it to anyone. Several runs are compared."
)
_MOST_OF_A_FIGURE = 64 * 1024**2
_LONGEST = 200  # characters of the name of a folder; file systems allow 255


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder, or its name")
    parser.add_argument(
        "--storage-path",
        metavar="FOLDER",
        help="folder of all runs, where a name is looked up (default: that of the experiments)",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="where the files go (default: the run's folder; of several, storage/reports)",
    )
    parser.add_argument("--json", action="store_true", help="print the curves as JSON on stdout")


def run(options: argparse.Namespace) -> int:
    """Read the runs, write the files and print the tables."""
    storage = storage_folder(options.storage_path or load().storage_path)
    paths = [find_run(name, storage) for name in options.runs]
    if len(set(paths)) < len(paths):
        raise UserError(f"the same run is named twice: {' '.join(options.runs)}.")
    for path in paths:
        require_search(path)
    from krscale.report import read_curve  # torch and matplotlib take seconds to import

    curves = _told_apart([_named(read_curve(path), path) for path in paths])
    output = _output(options.output, paths, curves)
    _print_tables(paths, curves, as_json=options.json)  # even where no file can be written
    try:
        output.mkdir(parents=True, exist_ok=True)
        _write_files(paths, curves, output)
    except OSError as error:
        file = error.filename2 or error.filename or output  # filename2 is the target of a move
        raise UserError(f"{file}: cannot be written: {error.strerror or error}.") from None
    if not options.json:
        show(f"Page:   {output / PAGE_FILE} (one file; opens without a network)")
        show(f"CSV:    {output / CSV_FILE}")
        figures = f"{output / FIGURE_FILE}, to explore in a browser: {output / INTERACTIVE_FILE}"
        show(f"Figure: {figures}")
    return 0


def _named(curve: Curve, path: Path) -> Curve:
    """Name a curve after its folder, which may have been renamed or be a copy of another.

    If the folder's name is not valid for a run, the curve keeps the name that the run began with.
    """
    try:
        name = TypeAdapter(RunName).validate_python(path.name)
    except ValidationError:
        return curve
    return curve.model_copy(update={"name": name})


def _told_apart(curves: Sequence[Curve]) -> list[Curve]:
    """Number runs with the same name, which may come from several storages."""
    taken = {curve.name for curve in curves}  # a numbered name must not be that of another run
    found: list[Curve] = []
    for curve in curves:
        name = curve.name
        if any(name == other.name for other in found):
            name = _free(name, taken)
            taken.add(name)
        found.append(curve.model_copy(update={"name": name}))
    return found


def _free(name: str, taken: Collection[str]) -> str:
    return next(found for n in count(2) if (found := f"{name}-{n}") not in taken)


def _figure_names(curves: Sequence[Curve]) -> list[str]:
    """Return the file of each run's own figure; none is the name of the figure of all runs."""
    if len(curves) == 1:
        return [FIGURE_FILE]
    names, together = [curve.name for curve in curves], Path(FIGURE_FILE).stem
    return [f"{_free(name, names) if name == together else name}.png" for name in names]


def _output(given: str | None, paths: Sequence[Path], curves: Sequence[Curve]) -> Path:
    if given:
        folder = user_path(given, "--output").resolve()
        if [folder] != list(paths) and any((folder / file).is_file() for file in _OF_A_RUN):
            raise UserError(
                f"--output: {folder} is the folder of a run, whose own figures would be replaced. "
                "Choose another folder."
            )
        return folder
    if len(paths) == 1:
        return paths[0]
    name = "+".join(curve.name for curve in curves)
    if len(name) > _LONGEST:  # the fingerprint keeps it apart from names with the same beginning
        name = f"{name[:_LONGEST]}-{fingerprint(name)}"
    return paths[0].parent / "reports" / name


def _write_files(paths: Sequence[Path], curves: Sequence[Curve], output: Path) -> None:
    from krscale.report import draw_curve, draw_curves, write_csv, write_interactive, write_page

    shown = []
    for path, curve, name in zip(paths, curves, _figure_names(curves), strict=True):
        figure = output / name
        draw_curve(curve, figure)
        shown.append(_shown(path, curve, figure.read_bytes()))
    overlay = None
    if len(curves) > 1:
        draw_curves(curves, output / FIGURE_FILE)
        overlay = (output / FIGURE_FILE).read_bytes()
        write_json(output / JSON_FILE, _content(curves))
    write_interactive(curves, output / INTERACTIVE_FILE)
    write_csv(curves, output / CSV_FILE)
    write_page(shown, output / PAGE_FILE, overlay)


def _shown(path: Path, curve: Curve, figure: bytes) -> ShownRun:
    from krscale.report import ShownRun
    from krscale.report.findings import read_insight

    experiment, problem = _or_problem(read_experiment, path)
    environment, environment_problem = _or_problem(read_environment, path)
    insight, insight_problem = _or_problem(read_insight, path)
    drawn, figure_problem = _or_problem(_figure_of_insight, path) if insight else (None, "")
    for passed_over in filter(None, (environment_problem, figure_problem)):
        show(f"krscale: {passed_over}", file=sys.stderr)  # the page leaves it out
    return ShownRun(
        curve,
        figure,
        experiment,
        environment or {},
        problem,
        insight=insight,
        insight_figure=drawn,
        insight_problem=insight_problem
        or f"This was not kept for this run; `krscale insight {shlex.quote(str(path))}` finds it "
        f"in the journal of the search, and the next page shows it.",
    )


def _figure_of_insight(path: Path) -> bytes | None:
    from krscale.report.findings import INSIGHT_FIGURE_FILE

    figure = path / INSIGHT_FIGURE_FILE
    try:
        return read_bounded(figure, _MOST_OF_A_FIGURE)
    except FileNotFoundError:  # it is only drawn if there is something to draw
        return None
    except OSError as error:
        reason = f"it cannot be read ({error.strerror or error})"
        raise damaged(figure, reason, "`krscale insight` draws it again.") from None


def _or_problem(read: Callable[[Path], Found], path: Path) -> tuple[Found | None, str]:
    """Read a file of a run, or return why it cannot be read.

    The curve of an older krscale can be read even where other files have keys that are unknown
    today; the page states the reason.
    """
    try:
        return read(path), ""
    except UserError as error:
        return None, str(error)


def _content(curves: Sequence[Curve]) -> Any:
    """Return one curve as in `curve.json`, or several as a list."""
    found = [curve.model_dump(mode="json") for curve in curves]
    return found[0] if len(found) == 1 else found


def _print_tables(paths: Sequence[Path], curves: Sequence[Curve], *, as_json: bool) -> None:
    if as_json:
        show(json.dumps(_content(curves), indent=2))
        return

    from krscale.report import comparison_table, curve_table, front_headings, front_table

    if len(curves) > 1:
        experiments = [_or_problem(read_experiment, path)[0] for path in paths]
        terminal().print(comparison_table(curves, experiments=experiments))
    else:
        terminal().print(curve_table(curves[0]))
        if front_headings(curves[0]):
            terminal().print(front_table(curves[0]))
