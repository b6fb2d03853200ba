"""Who hears of trials: the tracker (MLflow) and the live view. Each turns events into its words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from optuna.trial import TrialState

from krscale.assemble import Prepared
from krscale.config import Experiment
from krscale.curve import Curve
from krscale.progress import Progress
from krscale.provenance import git_commit
from krscale.rungs import Rung
from krscale.search.assignment import Assignment, StudyKey
from krscale.search.ladder import Ladder
from krscale.search.retries import INTERRUPTED
from krscale.tracking import Tracker


class TrackingListener:
    """Records every trial as a child of its method's run, and the curve on that run."""

    def __init__(
        self,
        tracker: Tracker,
        experiment: Experiment,
        prepared: Prepared,
        rungs: tuple[Rung, ...],
        latencies: Mapping[str, float],
    ) -> None:
        self.tracker = tracker
        self.experiment = experiment
        self.rungs = {rung.capacity: rung for rung in rungs}
        self.latencies = latencies
        self.tags = {
            "krscale.search": experiment.name,
            "krscale.commit": git_commit(),
            "krscale.data": prepared.teacher.data_fingerprint,
            "krscale.teacher": prepared.teacher.fingerprint,
        }
        for method in experiment.search.methods:
            tracker.start_run(
                method,
                name=f"{experiment.name} {method}",
                tags={**self.tags, "krscale.method": method, "krscale.kind": "search"},
                params={
                    "method": method,
                    "trials_per_rung": experiment.search.trials_per_rung,
                    "num_epochs": experiment.train.num_epochs,
                    "teacher": f"{prepared.teacher.model} width {prepared.teacher.width}",
                },
            )

    def on_start(self, assignment: Assignment) -> None:
        """Start the child run, with what was suggested and how large the student is."""
        key, rung = assignment.key, self.rungs[assignment.key.capacity]
        self.tracker.start_run(
            assignment.name,
            name=run_name(assignment),
            parent=key.method,
            tags={
                **self.tags,
                "krscale.method": key.method,
                "krscale.rung": key.capacity,
                "krscale.kind": "final" if key.final else "trial",
            },
            params={**assignment.values, "train.seed": assignment.seed, "width": rung.width},
        )
        capacity = {
            "capacity/num_parameters": float(rung.num_parameters),
            "capacity/flops": float(rung.flops),
            "capacity/latency_ms": self.latencies[key.capacity],
        }
        self.tracker.log_metrics(assignment.name, capacity, step=0)

    def on_epoch(self, assignment: Assignment, metrics: Mapping[str, float]) -> None:
        """Log the metrics of an epoch."""
        self.tracker.log_metrics(assignment.name, dict(metrics), step=int(metrics["epoch"]))

    def on_end(
        self, assignment: Assignment, state: TrialState, metrics: Mapping[str, float], error: str
    ) -> None:
        """End the child run in the state that Optuna has."""
        if error:
            self.tracker.set_tags(assignment.name, {"krscale.error": error})
        self.tracker.end_run(assignment.name, state.name)

    def on_curve(self, curve: Curve, ladder: Ladder) -> None:
        """Log the curve: one metric key for all methods, step = number of parameters.

        The final trainings get their own test accuracies.
        """
        for rung in curve.rungs:
            for method, result in rung.methods.items():
                key = StudyKey(method, rung.capacity, final=True)
                finals = ladder.finals(method, rung.capacity)
                for trial, accuracy in zip(finals, result.test_accuracies, strict=True):
                    name = key.trial_name(trial.number)
                    step = self.experiment.train.num_epochs
                    self.tracker.log_metrics(name, {"test/accuracy": accuracy}, step=step)
                if result.test_accuracy is None or result.val_accuracy is None:
                    continue
                point = {
                    "curve/test_accuracy": result.test_accuracy,
                    "curve/val_accuracy": result.val_accuracy,
                    "curve/flops": float(rung.flops),
                    "curve/latency_ms": rung.latency_ms,
                }
                self.tracker.log_metrics(method, point, step=rung.num_parameters)

    def log_artifact(self, path: Path) -> None:
        """Keep a file with every method's run."""
        for method in self.experiment.search.methods:
            self.tracker.log_artifact(method, path)

    def close(self, state: str) -> None:
        """End the methods' runs."""
        for method in self.experiment.search.methods:
            self.tracker.end_run(method, state)


class ProgressListener:
    """Feeds the live view."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def recall(self, ladder: Ladder) -> None:
        """Show what earlier starts of this run have already done."""
        for key in ladder.studies:
            for trial in ladder.counted(key):
                study = (key.method, key.capacity)
                value = trial.user_attrs.get("val/accuracy")
                self.progress.trial_restored(study, trial.state.name, value)

    def on_start(self, assignment: Assignment) -> None:
        """A trial is running."""
        self.progress.trial_started(_cell(assignment))

    def on_epoch(self, assignment: Assignment, metrics: Mapping[str, float]) -> None:
        """A trial has a new validation accuracy."""
        self.progress.trial_report(
            _cell(assignment), int(metrics["epoch"]), metrics["val/accuracy"]
        )

    def on_end(
        self, assignment: Assignment, state: TrialState, metrics: Mapping[str, float], error: str
    ) -> None:
        """A trial ended; an error is shown at once."""
        if error.startswith(INTERRUPTED):
            self.progress.trial_interrupted(_cell(assignment))
            return  # it is run again
        self.progress.trial_ended(_cell(assignment), state.name, metrics.get("val/accuracy"))
        if error:
            self.progress.note(f"{assignment.name} failed: {error}")


def run_name(assignment: Assignment) -> str:
    """Return a name that reads in a list of runs: `kr G=3 s=0.3 cap=1/16`."""
    values = assignment.values
    parts = [assignment.key.method]
    if "distill.granularity" in values:
        parts.append(f"G={values['distill.granularity']}")
    if "distill.sparsity" in values:
        parts.append(f"s={values['distill.sparsity']:.2f}")
    parts.append(f"cap={assignment.key.capacity}")
    if assignment.key.final:
        parts.append(f"seed={assignment.seed}")
    return " ".join(parts)


def _cell(assignment: Assignment) -> tuple[str, str]:
    return assignment.key.method, assignment.key.capacity
