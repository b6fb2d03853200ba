"""Run a whole search from config to curve: prepare, search, test once, record, show."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import optuna

from krscale import allocator
from krscale.cluster.connect import connect, num_slots
from krscale.cluster.nodes import reach_storage
from krscale.cluster.sending import check_arrival
from krscale.cluster.store_shards import write_on_workers
from krscale.cluster.teacher import teach_on_workers
from krscale.config import Experiment
from krscale.data.given import given_folder
from krscale.models.given import given
from krscale.progress import Progress
from krscale.report import (
    Curve,
    draw_curve,
    write_curve,
    write_interactive,
)
from krscale.report.result import CURVE_FILE
from krscale.runs.binding import bind, bind_weights
from krscale.runs.experiment_file import SPACE
from krscale.runs.folder import run_folder, student_path
from krscale.search.callbacks import ProgressListener, TrackingListener
from krscale.search.check import (
    CheckedSearch,
    check_search,
    check_settings,
    known_latencies,
)
from krscale.search.insight_figure import record_insight
from krscale.search.on_ray.gpu_packing import candidates, gpus_per_trial
from krscale.search.on_ray.group_resources import (
    asks_for_more,
    require_group,
    trial_resources,
)
from krscale.search.on_ray.run import require_possible, run_search
from krscale.search.results import collect
from krscale.search.studies.extending import finished_trials, remember_budgets
from krscale.search.studies.journal import JOURNAL, refuse_lost_journal
from krscale.search.studies.ladder import Ladder
from krscale.search.studies.opening import last_trained, trials_that_ran
from krscale.search.studies.pruners import expected_share
from krscale.search.studies.retries import SEED
from krscale.search.studies.size_resolver import LATENCY_FILE
from krscale.search.studies.trial_spec import Listener
from krscale.setup.network_builder import student_models
from krscale.setup.prepare import Prepared, Setup, pick_device, prepare_knowledge
from krscale.setup.sizes import ladder_sizes
from krscale.time_left import Workload
from krscale.tracking import Tracker, recording_seconds


def run_session(
    experiment: Experiment,
    *,
    quiet: bool,
    new_space: bool = False,
    new_data: bool = False,
) -> tuple[Curve, tuple[str, str]]:
    """Run a search to its end, or continue it.

    Everything that can be refused is refused before the teacher trains.

    Args:
        experiment: The resolved experiment.
        quiet: Show no live view on stderr.
        new_space: Continue a run whose search space was different; see `studies/opening.py`.
        new_data: Set the results of other data, or of another teacher, aside and start again.

    Returns:
        The curve; and a command and an address that show all trials, both empty if there are
        none.
    """
    # Optuna would log every study that is opened, between the lines of the live view.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    check_settings(experiment)
    pick_device(experiment.train.device)  # refuses a missing GPU before data is read
    planned, workload = _planned(experiment), _workload(experiment)
    with Progress(quiet=quiet, planned=planned, workload=workload) as progress:
        reach_storage(experiment)
        setup = Setup.resolve(experiment, progress)
        experiment = setup.experiment
        if not quiet:
            progress.note(setup.dataset.summary())
        sizes = ladder_sizes(setup.networks)
        with nullcontext() if new_data else known_latencies(experiment) as latencies:
            checked = check_search(setup.networks, sizes, progress.note, latencies)
        for note in checked.notes:
            progress.note(note)
        with run_folder(
            experiment,
            {"space": checked.space.describe()},
            spent=lambda folder: trials_that_ran(folder / JOURNAL),
            renewed=_renewed(experiment, new_space, new_data),
            say=progress.note,
        ) as folder:
            for line in bind(folder, setup, new_data=new_data):
                progress.note(line)
            tracker = Tracker(
                experiment.tracking.uri,
                experiment.tracking.experiment,
                folder,
                enabled=experiment.tracking.enabled,
                system_metrics=experiment.tracking.system_metrics,
                warn=progress.note,
            )
            try:
                if asks_for_more(experiment) and not (folder / CURVE_FILE).exists():
                    require_group(experiment)
                prepared = prepare_knowledge(setup, progress, write_on_workers, teach_on_workers)
                bind_weights(folder, Path(prepared.teacher_path))
                curve = _search(experiment, prepared, checked, tracker, progress)
            finally:
                progress.phase("record")
                tracker.close(recording_seconds())
    return curve, tracker.how_to_open() if experiment.tracking.enabled else ("", "")


def _search(
    experiment: Experiment,
    prepared: Prepared,
    checked: CheckedSearch,
    tracker: Tracker,
    progress: Progress,
) -> Curve:
    """Run the ladder to its end and return its curve."""
    sizes, size_resolver = checked.sizes, checked.size_resolver
    size_resolver.keep_latencies(experiment.run_path / LATENCY_FILE)
    # Measured now, before trials compete for the cores.
    latencies = {size.capacity: size_resolver.latency_ms(size.capacity, {}) for size in sizes}
    tracking = TrackingListener(tracker, experiment, prepared, sizes, latencies)
    showing = ProgressListener(progress)
    state = "FAIL"
    try:
        progress.phase("search")
        ladder = _open_ladder(experiment, checked, [tracking, showing], progress)
        showing.recall(ladder)
        for line in (*_lost_trials(ladder), *_lost_students(ladder), *tracking.recall(ladder)):
            progress.note(line)
        if not ladder.complete:
            _train(experiment, prepared, checked, ladder, progress)
        progress.phase("test")
        curve = _conclude(experiment, prepared, ladder, tracking)
        state = "COMPLETE"
    finally:
        tracking.close(state)
    return curve


def _open_ladder(
    experiment: Experiment,
    checked: CheckedSearch,
    listeners: Sequence[Listener],
    progress: Progress,
) -> Ladder:
    """Open the run's studies, as far as they exist, and show the plan."""
    refuse_lost_journal(experiment.run_path)
    ladder = Ladder(
        experiment.run_path / JOURNAL,
        experiment,
        checked.space,
        checked.sizes,
        listeners,
        size_resolver=checked.size_resolver,
    )
    # Sizes beyond a limit are not included, and a grid may have fewer points than trials.
    planned = {
        (key.method, key.capacity): ladder.planned(key) + ladder.planned(key.finals)
        for key in ladder.tuning
    }
    progress.plan(planned, {size.capacity: size.flops for size in checked.sizes})
    return ladder


def _train(
    experiment: Experiment,
    prepared: Prepared,
    checked: CheckedSearch,
    ladder: Ladder,
    progress: Progress,
) -> None:
    """Run the remaining trials on the cluster."""
    _say_small_grids(ladder, progress)
    allocator.give_back()  # frees the memory of teacher and store for the trials
    connect(experiment.cluster)
    check_arrival(student_models(experiment), given())
    largest = checked.sizes[-1].capacity
    students = partial(candidates, experiment, checked.space, checked.size_resolver, largest)
    gpus = gpus_per_trial(experiment, prepared, students, progress.note)
    resources = trial_resources(experiment.search, gpus)
    progress.num_workers = num_slots(resources, experiment.train.most_workers)
    require_possible(ladder, resources)
    _set_aside(experiment.run_path / CURVE_FILE)
    run_search(ladder, prepared, resources, progress.note)
    _say_what_ended(ladder, progress)


def _conclude(
    experiment: Experiment, prepared: Prepared, ladder: Ladder, tracking: TrackingListener
) -> Curve:
    """Test the final students, and record and write the curve."""
    curve = collect(ladder, prepared)
    tracking.on_curve(curve, ladder)
    _, insight_files = record_insight(experiment.run_path)
    for path in (*_write(curve, experiment.run_path), *insight_files):
        tracking.log_artifact(path)
    tuned = ladder.tuning.values()
    remember_budgets(experiment, {study.optuna.study_name: study.num_counted for study in tuned})
    return curve


def _renewed(experiment: Experiment, new_space: bool, new_data: bool) -> tuple[str, ...]:
    """Return the fields that may differ from the earlier run; `bind` compares the images."""
    kept = Path(experiment.data.path).parent == given_folder(experiment.cache_path)
    return (*(SPACE if new_space else ()), *(("data.path",) if new_data and kept else ()))


def _lost_trials(ladder: Ladder) -> list[str]:
    """Return a line for the user about studies with fewer trials than when their search finished.

    A journal that was cut at the end of a line passes all checks of its own. Only the record in the
    run folder shows that there were more trials.
    """
    before, lost = finished_trials(ladder.run_path), []
    for key, study in ladder.tuning.items():
        wanted = min(before.get(study.optuna.study_name, 0), ladder.planned(key))
        if study.num_counted < wanted:
            lost.append(f"{key.name} ({study.num_counted} of {wanted})")
    if not lost:
        return []
    return [
        f"{ladder.journal.path} holds fewer trials than when its search finished: "
        f"{', '.join(lost)}. What is missing is run again."
    ]


def _lost_students(ladder: Ladder) -> list[str]:
    """Mark final students whose weights are gone, to train them again; return a line per reason.

    Students that were replaced are also trained again: if an earlier search space is used again,
    the students of the other space were trained with the same seeds in the meantime.
    """
    run_path, last = ladder.run_path, last_trained(ladder.journal.storage)
    gone, replaced = list[str](), list[str]()
    for key, study in ladder.finals.items():
        lost = []
        for trial in study.complete():
            seed = int(trial.user_attrs[SEED])
            path = student_path(run_path, key.method, key.capacity, seed)
            is_kept = last[key, seed] == (study.optuna.study_name, trial.number)
            if not (path.is_file() and is_kept):
                lost.append(trial.number)
                (replaced if path.is_file() else gone).append(str(path.relative_to(run_path)))
        if lost:
            study.lose(lost)
    again = "these students are trained again."
    reasons = {"are gone": gone, "are of another search space, which was searched since": replaced}
    return [
        f"{run_path}: {', '.join(paths)} {reason}; {again}"
        for reason, paths in reasons.items()
        if paths
    ]


def _write(curve: Curve, folder: Path) -> list[Path]:
    """Write the result as data, as a picture and as an interactive figure; return the files."""
    figure, interactive = folder / "curve.png", folder / "curve.html"
    draw_curve(curve, figure)
    write_interactive([curve], interactive)
    return [write_curve(curve, folder), figure, interactive]


def _set_aside(curve: Path) -> None:
    """Rename an old curve: a search that continues replaces the students that it describes."""
    if curve.exists():
        curve.replace(curve.with_name(f"{curve.stem}.before.json"))


def _say_small_grids(ladder: Ladder, progress: Progress) -> None:
    """Note, before anything trains, which methods will have fewer trials than requested."""
    wanted = ladder.config.trials_per_size
    planned = {key.method: ladder.planned(key) for key in ladder.tuning}
    smaller = [f"{count} points for {name}" for name, count in planned.items() if count < wanted]
    if smaller:
        progress.note(
            f"search.sampler = 'grid': the grid has {', '.join(smaller)}; a study tries each point "
            f"once and ends before its search.trials_per_size = {wanted}"
        )


def _say_what_ended(ladder: Ladder, progress: Progress) -> None:
    """Note why studies ended with fewer trials than planned; the journal contains it, too."""
    reasons: dict[str, list[str]] = {}
    for key in ladder.tuning:
        if len(ladder.counted(key)) < ladder.planned(key):
            reasons.setdefault(ladder.ended_by(key), []).append(key.name)
    for reason, names in reasons.items():
        progress.note(f"no more trials of {', '.join(names)}: {reason}")


def _planned(experiment: Experiment) -> dict[tuple[str, str], int]:
    config = experiment.search
    return {
        (method, capacity): config.trials_per_size + config.num_final_seeds
        for capacity in experiment.sizes
        for method in config.methods
    }


def _workload(experiment: Experiment) -> Workload:
    return Workload(
        num_finals=experiment.search.num_final_seeds,
        num_epochs=experiment.train.num_epochs,
        expected_share=expected_share(experiment.search, experiment.train.num_epochs),
    )
