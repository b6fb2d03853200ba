"""A training that records like a search, and the time that recording costs."""

from __future__ import annotations

import time

from krscale.tracking import Tracker

NUM_EPOCHS, NUM_TRIALS = 5, 10
EPOCH_SECONDS = 0.3


def train(tracker: Tracker, numbers: range) -> float:
    """Record trials, an epoch at a time; return the seconds that recording cost."""
    cost = 0.0
    for number in numbers:
        key = f"kr/1-16/trial-{number}"
        started = time.perf_counter()
        tracker.start_run(key, f"trial {number}", parent="kr", params={"lr": number / 100})
        cost += time.perf_counter() - started
        for epoch in range(NUM_EPOCHS):
            time.sleep(EPOCH_SECONDS)
            started = time.perf_counter()
            tracker.log_metrics(key, {"val/accuracy": number + epoch / 10, "loss": 1.0}, epoch)
            cost += time.perf_counter() - started
        started = time.perf_counter()
        tracker.end_run(key, "COMPLETE")
        cost += time.perf_counter() - started
    return cost


def share_of_time(costs: list[float], num_trials: int) -> float:
    """Return recording's share of the time of `num_trials` trials."""
    return sum(costs) / (num_trials * NUM_EPOCHS * EPOCH_SECONDS)
