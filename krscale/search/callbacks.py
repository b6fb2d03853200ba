"""Listeners that pass on the events of trials to the tracker (MLflow) and to the live view."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from krscale.config import Experiment
from krscale.data import open_data
from krscale.metrics import TEST_ACCURACY, VAL_ACCURACY
from krscale.progress import Progress
from krscale.report import Curve, MethodResult
from krscale.runs.origin import commit_tags, origin_tags
from krscale.search.curve_points import curve_points, is_of_curves
from krscale.search.studies.ladder import Ladder
from krscale.search.studies.pruners import STOPPED
from krscale.search.studies.retries import INTERRUPTED, last_epoch
from krscale.search.studies.size_resolver import same_student
from krscale.search.studies.study import FORBIDDEN
from krscale.search.studies.trial_spec import Assignment, FinalKey, TuningKey
from krscale.setup.prepare import Prepared
from krscale.setup.sizes import StudentSize
from krscale.tracking import Tracker, datasets_used, successor


class TrackingListener:
    """Records every trial as a child of its method's run, and the curve on that run.

    MLflow cannot remove points. If a search that goes on has changed a curve, a new run gets it.

    Attributes:
        runs: Method -> key of its run, which has the present curve.
    """

    def __init__(
        self,
        tracker: Tracker,
        experiment: Experiment,
        prepared: Prepared,
        sizes: tuple[StudentSize, ...],
        latencies: Mapping[str, float],
    ) -> None:
        self.tracker = tracker
        self.experiment = experiment
        self.sizes = {size.capacity: size for size in sizes}
        self.latencies = latencies
        self.tags = {"krscale.search": experiment.name, **origin_tags(experiment, prepared)}
        self.params = {method: prepared.params(method) for method in experiment.search.methods}
        data = open_data(Path(prepared.data_path))
        self.datasets = datasets_used(data, experiment.data, prepared.taught)
        self.teacher = f"{prepared.teacher.model} width {prepared.teacher.width}"
        self.runs = {method: tracker.newest(method) for method in experiment.search.methods}
        for method in self.runs:
            self._start_search(method)

    def _start_search(self, method: str) -> None:
        """Start a method's run; one that has a curve keeps the tags of the start that made it."""
        self.tracker.start_run(
            self.runs[method],
            name=f"{self.experiment.name} {method}",
            tags={} if self._curve_in_record(method) else self._search_tags(method),
            params={
                "method": method,
                "num_epochs": self.experiment.train.num_epochs,
                "teacher": self.teacher,
                **self.params[method],
            },
            datasets=self.datasets,
        )

    def _search_tags(self, method: str) -> dict[str, str]:
        return {
            **self.tags,
            "krscale.method": method,
            "krscale.kind": "search",
            # A tag, since a search may be extended and MLflow's params never change.
            "krscale.trials_per_size": str(self.experiment.search.trials_per_size),
        }

    def _curve_in_record(self, method: str) -> set[tuple[str, int, float]]:
        """Return the points of the curves of a method's run: metric, step and value."""
        recorded = self.tracker.recorded_points(self.runs[method])
        return {point for point in recorded if is_of_curves(point[0])}

    def recall(self, ladder: Ladder) -> list[str]:
        """Record trials that ended while nothing was recorded, from the journal.

        Returns:
            Notes for the user, one line each.
        """
        if not self.tracker.enabled:
            return []
        number = 0
        for key, study in ladder.optuna_studies.items():
            for trial in study.get_trials(deepcopy=False):
                name = ladder.trial_name(key, trial.number)
                ran = trial.state.is_finished() and FORBIDDEN not in trial.user_attrs
                if ran and not self.tracker.has_ended(name):
                    self._record_late(ladder.assignment(key, trial), trial)
                    number += 1
        if not number:
            return []
        return [
            f"{number} trials ended while nothing was recorded of them; MLflow gets them now from "
            f"{ladder.journal.path}: settings, sizes, states, last metrics and the validation "
            f"accuracy of each epoch. The other metrics of their epochs were not kept."
        ]

    def _record_late(self, assignment: Assignment, trial: FrozenTrial) -> None:
        start, end = _milliseconds(trial.datetime_start), _milliseconds(trial.datetime_complete)
        self._start(assignment, start)
        for epoch, accuracy in sorted(trial.intermediate_values.items()):
            point = {VAL_ACCURACY: accuracy}
            self.tracker.log_metrics(assignment.name, point, step=epoch, time_ms=end)
        attrs = trial.user_attrs
        metrics = {name: value for name, value in attrs.items() if isinstance(value, float)}
        if reached := last_epoch(trial):  # an interrupted trial has no other metrics
            metrics.setdefault("epoch", float(reached))
        step = int(metrics.get("epoch", 0))
        self.tracker.log_metrics(assignment.name, metrics, step=step, time_ms=end)
        self.tracker.set_tags(assignment.name, {"krscale.recorded": "later, from the journal"})
        interrupted = attrs.get(INTERRUPTED)
        reason = attrs.get("error") or attrs.get(STOPPED, "")
        if interrupted and not reason:
            reason = f"{INTERRUPTED}: {interrupted}"
        self._end(assignment, trial.state, metrics, reason, end)

    def on_start(self, assignment: Assignment) -> None:
        """Start the child run, with the suggested values and the student's size."""
        self._start(assignment)

    def _start(self, assignment: Assignment, time_ms: int | None = None) -> None:
        key, size = assignment.key, assignment.size
        self.tracker.start_run(
            assignment.name,
            name=run_name(assignment),
            parent=self.runs[key.method],
            tags={
                **self.tags,
                "krscale.method": key.method,
                "krscale.size": key.capacity,
                "krscale.kind": key.kind,
            },
            params={
                **assignment.values,
                **self.params[key.method],
                "train.seed": assignment.seed,
                "width": size.width,
            },
            datasets=[used for used in self.datasets if used.context != "test"],
            time_ms=time_ms,
        )
        sizes = {
            "size/num_parameters": float(size.num_parameters),
            "size/flops": float(size.flops),
        }
        latency, own = assignment.latency_ms, self.sizes[key.capacity]
        if latency is None and size == own and same_student(self.experiment, assignment.values):
            latency = self.latencies[key.capacity]
        if latency is not None:  # a searched architecture's is measured only on demand
            sizes["size/latency_ms"] = latency
        self.tracker.log_metrics(assignment.name, sizes, step=0, time_ms=time_ms)

    def on_epoch(self, assignment: Assignment, metrics: Mapping[str, float]) -> None:
        """Log the metrics of an epoch."""
        self.tracker.log_metrics(assignment.name, dict(metrics), step=int(metrics["epoch"]))

    def on_end(
        self, assignment: Assignment, state: TrialState, metrics: Mapping[str, float], reason: str
    ) -> None:
        """End the child run in the state that Optuna has; record the epochs reached, and why."""
        self._end(assignment, state, metrics, reason)

    def _end(
        self,
        assignment: Assignment,
        state: TrialState,
        metrics: Mapping[str, float],
        reason: str,
        time_ms: int | None = None,
    ) -> None:
        num_epochs = self.experiment.train.num_epochs
        tags = {"krscale.budget": f"{int(metrics.get('epoch', 0))} of {num_epochs} epochs"}
        if reason:
            tag = "krscale.stopped" if state is TrialState.PRUNED else "krscale.error"
            tags[tag] = reason
        self.tracker.set_tags(assignment.name, tags)
        self.tracker.end_run(assignment.name, state.name, time_ms=time_ms)

    def on_curve(self, curve: Curve, ladder: Ladder) -> None:
        """Log the curve on the methods' runs, and the test accuracy of every final training."""
        for size in curve.sizes:
            for method, result in size.methods.items():
                self._log_finals(ladder, size.capacity, method, result)
                self._tag_front(ladder, size.capacity, method, result)
        for method in curve.methods:
            self._log_points(curve, method)
            self._log_best(curve, method)
            ended_by = {r.methods[method].ended_by for r in curve.sizes if method in r.methods}
            names = ", ".join(sorted(name for name in ended_by if name))
            tags = {**self._search_tags(method), **commit_tags(curve.commit)}
            self.tracker.set_tags(self.runs[method], {**tags, "krscale.ended_by": names})

    def _log_finals(self, ladder: Ladder, capacity: str, method: str, result: MethodResult) -> None:
        key = FinalKey(method, capacity)
        finals = ladder.finals[FinalKey(method, capacity)].complete()
        for trial, accuracy in zip(finals, result.test_accuracies, strict=True):
            step = self.experiment.train.num_epochs
            name = ladder.trial_name(key, trial.number)
            self.tracker.log_metrics(name, {TEST_ACCURACY: accuracy}, step=step)

    def _log_points(self, curve: Curve, method: str) -> None:
        """Log a method's curves; on a new run if the record has points that they have not."""
        points = {
            (name, step, value): None  # in the order of the curve
            for step, point in curve_points(curve, method)
            for name, value in point.items()
        }
        recorded = self._curve_in_record(method)
        if recorded - points.keys():
            self.tracker.set_tags(self.runs[method], {"krscale.kind": "former search"})
            self.tracker.end_run(self.runs[method])
            self.runs[method] = successor(self.runs[method])
            self._start_search(method)
            recorded = self._curve_in_record(method)
        for name, step, value in points:
            if (name, step, value) not in recorded:
                self.tracker.log_metrics(self.runs[method], {name: value}, step=step)

    def _tag_front(self, ladder: Ladder, capacity: str, method: str, result: MethodResult) -> None:
        """Tag the trials that no other beats."""
        if not result.front:
            return
        key, numbers = TuningKey(method, capacity), {found.number for found in result.front}
        for trial in ladder.counted(key):
            tag = {"krscale.front": "true" if trial.number in numbers else "false"}
            self.tracker.set_tags(ladder.trial_name(key, trial.number), tag)

    def _log_best(self, curve: Curve, method: str) -> None:
        """Log one value per run for MLflow's table: the student that is best on validation."""
        results = [r.methods[method] for r in curve.sizes if method in r.methods]
        finished = [r for r in results if r.val_accuracy is not None]
        if not finished:
            return
        best = max(finished, key=lambda result: result.val_accuracy or 0.0)
        found = {
            "best_val_accuracy": best.val_accuracy or 0.0,
            "test_accuracy_of_best": best.test_accuracy or 0.0,
            "teacher_test_accuracy": curve.teacher["test_accuracy"],
        }
        self.tracker.log_metrics(self.runs[method], found, step=0)

    def log_artifact(self, path: Path) -> None:
        """Store a file with every method's run."""
        for run in self.runs.values():
            self.tracker.log_artifact(run, path)

    def close(self, state: str) -> None:
        """End the methods' runs; after a failed search, errors of the disk are ignored."""
        with suppress(*(() if state == "COMPLETE" else (OSError,))):
            for run in self.runs.values():
                self.tracker.end_run(run, state)


class ProgressListener:
    """Feeds the live view."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def recall(self, ladder: Ladder) -> None:
        """Show the trials of earlier starts of this run."""
        for key, study in ladder.studies.items():
            final = isinstance(key, FinalKey)
            for trial in study.counted():
                value, epochs = trial.user_attrs.get(VAL_ACCURACY), trial.user_attrs.get("epoch")
                self.progress.trial_restored(
                    (key.method, key.capacity), trial.state.name, value, final=final, epochs=epochs
                )

    def on_start(self, assignment: Assignment) -> None:
        """Show a trial that starts."""
        name, final = assignment.name, isinstance(assignment.key, FinalKey)
        self.progress.trial_started(_cell(assignment), name, final=final)

    def on_epoch(self, assignment: Assignment, metrics: Mapping[str, float]) -> None:
        """Show a trial's new validation accuracy."""
        self.progress.trial_report(
            _cell(assignment), int(metrics["epoch"]), metrics[VAL_ACCURACY], assignment.name
        )

    def on_end(
        self, assignment: Assignment, state: TrialState, metrics: Mapping[str, float], reason: str
    ) -> None:
        """Show a trial that ended; print an error at once."""
        if reason.startswith(INTERRUPTED):
            self.progress.trial_interrupted(_cell(assignment), assignment.name)
            return  # the trial is run again
        accuracy = metrics.get(VAL_ACCURACY)
        self.progress.trial_ended(_cell(assignment), state.name, accuracy, assignment.name)
        if state is TrialState.FAIL and reason:
            self.progress.note(f"{assignment.name} failed: {reason}")


def run_name(assignment: Assignment) -> str:
    """Return a readable name for a list of runs: `kr G=3 s=0.3 cap=1/16`."""
    values = assignment.values
    parts = [assignment.key.method]
    if "distill.granularity" in values:
        parts.append(f"G={values['distill.granularity']}")
    if "distill.sparsity" in values:
        parts.append(f"s={values['distill.sparsity']:.2g}")
    parts.append(f"cap={assignment.key.capacity}")
    if isinstance(assignment.key, FinalKey):
        parts.append(f"seed={assignment.seed}")
    return " ".join(parts)


def _milliseconds(moment: datetime | None) -> int | None:
    """Convert a time of the journal, local and without a zone, to milliseconds since 1970."""
    return None if moment is None else round(1000 * moment.timestamp())


def _cell(assignment: Assignment) -> tuple[str, str]:
    return assignment.key.method, assignment.key.capacity
