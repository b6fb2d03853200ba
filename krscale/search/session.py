"""A whole search from config to curve: prepare, search, test once, record, show."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console

from krscale.assemble import Prepared, check_methods, prepare
from krscale.capacity import latency_ms
from krscale.cluster import connect
from krscale.config import Experiment
from krscale.curve import Curve, curve_table, draw_curve, write_curve, write_interactive
from krscale.data import Dataset, prepare_data
from krscale.errors import UserError
from krscale.files import write_json
from krscale.progress import Progress
from krscale.provenance import run_folder
from krscale.rungs import Rung, build_student, ladder_rungs
from krscale.search.insight_figure import record_insight
from krscale.search.ladder import Ladder
from krscale.search.listeners import ProgressListener, TrackingListener
from krscale.search.results import collect
from krscale.search.run import run_search
from krscale.search.space import SearchSpace
from krscale.search.space_check import fitting_space
from krscale.shard_workers import write_on_workers
from krscale.tracking import Tracker

LATENCY_FILE = "latency.json"


def run_session(experiment: Experiment, *, as_json: bool, quiet: bool) -> Curve:
    """Run a search to its end, or continue it, and print its result on stdout.

    Everything that can be refused is refused before the teacher trains.

    Args:
        experiment: The resolved experiment.
        as_json: Print the curve as JSON instead of the table.
        quiet: Show no live view on stderr.
    """
    check_methods(experiment)
    if experiment.train.num_workers > 1:
        raise UserError(
            f"train.num_workers: a trial of a search trains on one worker (got "
            f"{experiment.train.num_workers}); `krscale distill` spreads one student over many."
        )
    with Progress(quiet=quiet, planned=_planned(experiment)) as progress:
        progress.phase("data")
        dataset = prepare_data(experiment.data, experiment.cache_path, progress.advance)
        rungs = ladder_rungs(experiment, dataset)
        space = fitting_space(experiment, dataset)
        with run_folder(experiment, {"space": space.describe()}) as folder:
            tracker = Tracker(
                experiment.tracking.uri,
                experiment.tracking.experiment,
                folder,
                enabled=experiment.tracking.enabled,
                warn=progress.note,
            )
            try:
                prepared = prepare(experiment, progress, write_on_workers)
                curve = _search(experiment, prepared, dataset, rungs, space, tracker, progress)
            finally:
                progress.phase("record")
                tracker.close(timeout=60.0)
    _show(curve, experiment, tracker.how_to_open() if experiment.tracking.enabled else "", as_json)
    return curve


def _search(
    experiment: Experiment,
    prepared: Prepared,
    dataset: Dataset,
    rungs: tuple[Rung, ...],
    space: SearchSpace,
    tracker: Tracker,
    progress: Progress,
) -> Curve:
    latencies = _latencies(experiment, dataset, rungs)
    tracking = TrackingListener(tracker, experiment, prepared, rungs, latencies)
    showing = ProgressListener(progress)
    state = "FAIL"
    try:
        progress.phase("search")
        journal = experiment.run_path / "journal.log"
        ladder = Ladder(journal, experiment, space, rungs, [tracking, showing])
        showing.recall(ladder)
        if not ladder.complete:
            connect(experiment.cluster)
            run_search(ladder, prepared)
        progress.phase("test")
        curve = collect(ladder, prepared, latencies)
        tracking.on_curve(curve, ladder)
        _, insight_files = record_insight(experiment.run_path)
        for path in (*_write(curve, experiment.run_path), *insight_files):
            tracking.log_artifact(path)
        state = "COMPLETE"
    finally:
        tracking.close(state)
    return curve


def _latencies(
    experiment: Experiment, dataset: Dataset, rungs: tuple[Rung, ...]
) -> dict[str, float]:
    """Milliseconds of one image by capacity, measured before any trial competes for the cores.

    Once a run: measured again, the points of the first start would stand beside those of the next
    one on every axis of latency.
    """
    path = experiment.run_path / LATENCY_FILE
    if not path.exists():
        students = {r.capacity: build_student(experiment, dataset, r.width) for r in rungs}
        measured = {c: latency_ms(model, dataset.image_shape) for c, model in students.items()}
        write_json(path, measured)
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _write(curve: Curve, folder: Path) -> list[Path]:
    """Write the result as data, as a picture and as a figure to explore; return the files."""
    figure, interactive = folder / "curve.png", folder / "curve.html"
    draw_curve(curve, figure)
    write_interactive([curve], interactive)
    return [write_curve(curve, folder), figure, interactive]


def _planned(experiment: Experiment) -> dict[tuple[str, str], int]:
    config = experiment.search
    return {
        (method, capacity): config.trials_per_rung + config.num_final_seeds
        for capacity in experiment.ladder.capacities
        for method in config.methods
    }


def _show(curve: Curve, experiment: Experiment, how_to_open: str, as_json: bool) -> None:
    if as_json:
        json.dump(curve.model_dump(mode="json"), sys.stdout, indent=2)
        print()
        return
    Console().print(curve_table(curve))
    print(f"Run:    {experiment.run_path} (curve.json, curve.png, curve.html, journal.log)")
    if how_to_open:
        print(f"MLflow: make ui, or {how_to_open}")
