"""A whole search from config to curve: prepare, search, test once, record, show."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console

from krscale.assemble import Prepared, prepare
from krscale.cluster import connect
from krscale.config import Experiment
from krscale.curve import Curve, curve_table, draw_curve, write_curve
from krscale.data import open_data
from krscale.progress import Progress
from krscale.provenance import run_folder
from krscale.rungs import Rung, ladder_rungs
from krscale.search.listeners import ProgressListener, TrackingListener
from krscale.search.results import collect
from krscale.search.run import run_search
from krscale.search.space import SearchSpace, load_space
from krscale.tracking import Tracker


def run_session(experiment: Experiment, *, as_json: bool, quiet: bool) -> Curve:
    """Run a search to its end, or continue it, and print its result on stdout.

    Args:
        experiment: The resolved experiment.
        as_json: Print the curve as JSON instead of the table.
        quiet: Show no live view on stderr.
    """
    config = experiment.search
    planned = {
        (method, capacity): config.trials_per_rung + config.num_final_seeds
        for capacity in experiment.ladder.capacities
        for method in config.methods
    }
    with Progress(quiet=quiet, planned=planned) as progress:
        prepared = prepare(experiment, progress)
        dataset = open_data(Path(prepared.data_path))
        rungs = ladder_rungs(experiment, dataset)
        space = load_space(experiment, num_taps=len(prepared.teacher.taps) + 1)
        with run_folder(experiment, {"space": space.describe()}) as folder:
            curve = _search(experiment, prepared, rungs, space, progress)
    _show(curve, folder, experiment, as_json)
    return curve


def _search(
    experiment: Experiment,
    prepared: Prepared,
    rungs: tuple[Rung, ...],
    space: SearchSpace,
    progress: Progress,
) -> Curve:
    progress.phase("search")
    connect(experiment.cluster)
    tracker = Tracker(
        experiment.tracking.uri,
        experiment.tracking.experiment,
        experiment.run_path,
        enabled=experiment.tracking.enabled,
    )
    tracking = TrackingListener(tracker, experiment, prepared, rungs)
    try:
        ladder = run_search(
            experiment, prepared, rungs, space, [tracking, ProgressListener(progress)]
        )
        progress.phase("test")
        curve = collect(ladder, prepared)
        path = write_curve(curve, experiment.run_path)
        figure = experiment.run_path / "curve.png"
        draw_curve(curve, figure)
        tracking.on_curve(curve)
        for method in experiment.search.methods:
            tracker.log_artifact(method, path)
            tracker.log_artifact(method, figure)
        tracking.close("COMPLETE")
    finally:
        unsent = tracker.close(timeout=60.0)
        if unsent:
            progress.note(f"{unsent} events wait in {experiment.run_path / 'tracking'}")
    return curve


def _show(curve: Curve, folder: Path, experiment: Experiment, as_json: bool) -> None:
    if as_json:
        json.dump(curve.model_dump(mode="json"), sys.stdout, indent=2)
        print()
        return
    Console().print(curve_table(curve))
    print(f"Run: {folder} (curve.json, curve.png)")
    if experiment.tracking.enabled:
        print(f"MLflow: {how_to_open}")
