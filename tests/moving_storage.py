"""Records runs whose storage is moved afterwards; imported in forked processes."""

from pathlib import Path

from krscale.tracking import Tracker


def record(storage: Path, name: str = "figure.txt", value: float = 0.5) -> None:
    """Record a run with a metric and an artifact, as a search would."""
    figure = storage / "run" / name
    figure.parent.mkdir(exist_ok=True)
    figure.write_text("drawn")
    with Tracker("", "digits", storage / "run") as tracker:
        tracker.start_run("kr", "digits kr")
        tracker.log_metrics("kr", {"accuracy": value}, step=1)
        tracker.log_artifact("kr", figure)
        tracker.end_run("kr")
        assert tracker.close(30) == 0


def record_each(storages: list[Path]) -> None:
    """Record a run in each storage."""
    for storage in storages:
        record(storage)
