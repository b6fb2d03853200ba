"""The table of `benchmarks/results/search.json`, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def search_table(result: Mapping[str, Any]) -> str:
    """Return the results beside their goals; what was not measured is left out."""
    lines = [
        f"`python benchmarks/search.py` on {result['machine']}; each part's command, commit, "
        "seconds and load average (before and after it) below.",
        "",
        "| measured | value | goal |",
        "|---|---|---|",
        *_contenders(result),
        *_workers(result),
        *_noop(result),
        *_sampling(result),
        *_simulated(result),
        "",
    ]
    lines += [
        f"- {name}: `{part['command']}` at `{part['commit'][:12]}`, {part['seconds']} s, load "
        f"{part['load_before_and_after'][0]} and {part['load_before_and_after'][1]}"
        for name, part in result.get("parts", {}).items()
    ]
    return "\n".join(lines)


def _contenders(result: Mapping[str, Any]) -> list[str]:
    if "contenders" not in result:
        return []
    found = result["contenders"]
    seconds = found["seconds"]
    setting = (
        f"{found['num_trials']} trials of {found['num_epochs']} epochs, {found['student']} of a "
        f"teacher {found['teacher']}, widths in multiples of {found['width_multiple']}; "
        f"r = {found['r']} in FLOPs, {found['r_seconds']} in seconds; "
        f"bound {found['bound']}, {found['bound_seconds']}"
    )
    return [
        f"| stock Ray Tune, teacher in every step / krscale, wall ({setting}) "
        f"| {result['stock_ray_over_krscale']} ({seconds['stock_ray']} / {seconds['krscale']} s) "
        "| 7 |",
        "| Optuna loop in one process, teacher in every step / krscale, wall "
        f"| {result['optuna_loop_over_krscale']} ({seconds['optuna_loop']} / "
        f"{seconds['krscale']} s) | 5 |",
        f"| the students' plain trainings alone, one after the other (half of them timed) "
        f"| {seconds['bare_students']} s | |",
    ]


def _workers(result: Mapping[str, Any]) -> list[str]:
    if "efficiency" not in result:
        return []
    found = result["long_trials"]
    shortest = min(found["trial_seconds"])
    return [
        f"| seconds in training steps / (workers x wall), {found['num_trials']} trials of "
        f"{shortest} s and more | {result['efficiency']} | 0.95 |",
        "| the same from the first step of the first trial to the last trial's end "
        f"| {found['efficiency_from_first_step']} | |",
        f"| of a trial's own time in training steps | {found['of_trials_in_steps']} | |",
        f"| seconds a worker waits between two trials, median of {len(found['gaps_s'])} "
        f"| {result['trial_start_s']} | 0.3 |",
    ]


def _noop(result: Mapping[str, Any]) -> list[str]:
    if "noop" not in result:
        return []
    found = result["noop"]
    return [
        f"| trials that do nothing, a second ({found['num_trials']:,} in {found['num_studies']} "
        f"studies) | {result['noop_trials_per_s']} | |",
        f"| CPU milliseconds of the driver per such trial | {found['driver_cpu_ms_per_trial']} | |",
    ]


def _sampling(result: Mapping[str, Any]) -> list[str]:
    rows = []
    if "trials_vs_random" in result:
        surrogate, found = result["surrogate"], result["sampling"]
        seeds = found["seeds"]["none"]
        rows.append(
            f"| trials to come within 0.5 point of the best of {found['reference_trials']} / those "
            f"of random search, no early stopping, {len(seeds)} seeds, *on a surrogate* of "
            f"{surrogate['points_per_size']} recorded learning curves a size; who does not come "
            f"near counts with {found['cap']:,}: {_capped(seeds, found['cap'])} "
            f"| {_interval(result['trials_vs_random'])} | 0.33 |"
        )
        rows.append(
            "| the same, both with the default early stopping: "
            f"{_capped(found['seeds']['asha'], found['cap'])} "
            f"| {_interval(result['trials_vs_random_with_early_stopping'])} | |"
        )
    if "transfer" in result:
        found = result["transfer"]
        rows.append(
            f"| points gained by neighbours' settings, {found['trials_per_size']} trials a size, "
            f"on the same surrogate | {_interval(found)} | |"
        )
    return rows


def _capped(seeds: Sequence[Mapping[str, Any]], cap: int) -> str:
    """Return in words how many studies of each sampler never came near."""
    words = []
    for kind in ("tpe", "random"):
        needed = [count for row in seeds for count in row[kind].values()]
        words.append(f"{sum(count == cap for count in needed)} of {len(needed)} of {kind}")
    return ", ".join(words)


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['mean']} ({found['low']} to {found['high']})"


def _simulated(result: Mapping[str, Any]) -> list[str]:
    if "simulated" not in result:
        return []
    found = result["simulated"]
    first, last = found["ask_ms_first_and_last_tenth"]
    parts = ", ".join(f"{what} {s:.0f} s" for what, s in found["driver_seconds"].items())
    return [
        f"| *simulated*: {found['num_trials']:,} trials of {found['trial_seconds']:.0f} s on "
        f"{found['num_workers']:,} workers: workers busy | {found['workers_busy']} | |",
        f"| its driver: busy ({parts}) | {found['driver_busy']} | |",
        f"| asking for a trial, the first and the last tenth, ms | {first}, {last} | |",
        f"| journal, MB; opening it again, s | {found['journal_megabytes']}; "
        f"{found['reopen_seconds']} | |",
        "| seconds that a trial must last for this driver to keep 95 % of so many workers busy "
        f"| {found['trial_seconds_needed_for_95_percent']} | |",
    ]
