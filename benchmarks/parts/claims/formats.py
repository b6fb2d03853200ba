"""Numbers, intervals and tables of `docs/claims.md` in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from krscale.report.interval import half_width

Json = Mapping[str, Any]


def as_race(race: Json | None) -> str:
    """Return a ratio of steps with its verdict."""
    if race is None:
        return "-"
    censored = f" ({race['num_censored']} never)" if race["num_censored"] else ""
    goal = "; goal met" if race["goal_met"] else ""
    return f"{as_interval(race, as_percent)}{censored}: {race['verdict']}{goal}"


def as_depths(by_seed: Sequence[Sequence[float]]) -> str:
    """Return the mean at every depth."""
    return " ".join(f"{mean_of(values):.2f}" for values in zip(*by_seed, strict=True))


def as_interval(entry: Json, show: Any) -> str:
    """Return a mean with its intervals."""
    low, high = entry["low"], entry["high"]
    between = "one seed" if low is None or high is None else f"{show(low)} to {show(high)}"
    text = f"{show(entry['mean'])} [{between}]"
    if over := entry.get("over_searches"):
        text += f" {{{show(over['low'])} to {show(over['high'])}}}"
    return text


def as_span(entries: Sequence[Json], show: Any) -> str:
    """Return the least and the largest mean."""
    means = [entry["mean"] for entry in entries]
    return f"{show(min(means))} to {show(max(means))}" if means else "not measured"


def as_goals(entries: Sequence[Json]) -> str:
    """Return how many goals are met."""
    return f"{sum(e['goal_met'] for e in entries)} of {len(entries)}" if entries else ""


def as_mean_with_half(values: Sequence[float]) -> str:
    """Return a mean and half its 95 % interval."""
    half = half_width(values)
    return as_share(mean_of(values)) + ("" if half is None else f" ± {as_share(half)}")


def mean_of(values: Sequence[float]) -> float:
    """Return the mean."""
    return math.fsum(values) / len(values)


def as_share(value: float) -> str:
    """Return a share in percent, without the sign."""
    return f"{100 * value:.1f}"


def as_points(value: float) -> str:
    """Return a difference in points."""
    return f"{100 * value:+.1f}"


def as_percent(value: float) -> str:
    """Return a share in whole percent."""
    return f"{100 * value:.0f} %"


def as_yes(met: bool) -> str:
    """Return yes or no."""
    return "yes" if met else "no"


def as_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_figure(figures: Mapping[str, Path], name: str) -> str:
    """Return a picture in Markdown; empty if it was not drawn."""
    return f"\n\n![{name}]({figures[name].as_posix()})" if name in figures else ""
