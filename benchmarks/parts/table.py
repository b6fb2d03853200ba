"""The table of `benchmarks/results/step.json`, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def step_table(result: Mapping[str, Any]) -> str:
    """Return the results beside their goals; what was not measured is left out."""
    lines = [
        f"{_commands(result)} on {result['machine']}; "
        f"steps and building in {result['clock']}, the rest in wall seconds.",
        "",
    ]
    if "pairs" in result:
        lines += [*_steps(result), ""]
    if "options" in result:
        lines += [*_options(result), ""]
    if "widths" in result:
        lines += [*_widths(result["widths"]), ""]
    rows = [*_store(result.get("store", {})), *_loader(result), *_memory(result)]
    if rows:
        lines += ["| measured | value | goal |", "|---|---|---|", *rows]
    return "\n".join(lines)


def _commands(result: Mapping[str, Any]) -> str:
    """Return which command measured what at which commit; parts may come from several runs."""
    parts: dict[str, list[str]] = {}
    for name, by in result["parts"].items():
        parts.setdefault(f"`{by['command']}` at `{by['commit'][:12]}`", []).append(name)
    return "; ".join(f"{command} ({', '.join(names)})" for command, names in parts.items())


def _steps(result: Mapping[str, Any]) -> list[str]:
    lines = [
        f"Teacher: {result['teacher']}; r = teacher's / student's forward, in FLOPs (and seconds). "
        "A step of KR teaches every head; steps of the last part of a training do not "
        "(`distill.auxiliary_until`), nor does every second one with "
        "`distill.auxiliary_interval = 2`. In brackets 95 % intervals of the median over rounds; "
        "the same plain training a second time shows how far a ratio can be trusted.",
        "",
        "| student | r | plain ms | KR + store / plain (goal 1.05) "
        "| heads in every second step (goal 1.05) | without heads | over a training "
        "| KD + store / plain | plain again / plain "
        "| online KR / KR + store (goal: 0.9 (3 + r) / 3; the same with r in seconds) "
        "| online KD / KD + store |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for pair in result["pairs"]:
        goal, in_seconds = (0.9 * (3 + pair[r]) / 3 for r in ("r", "r_seconds"))
        lines.append(
            f"| {pair['student']} | {pair['r']} ({pair['r_seconds']}) | {pair['plain_ms']} "
            f"| {pair['kr_store_over_plain']}{_between(pair.get('kr_interval'))} "
            f"| {pair.get('kr_second_over_plain', 'not measured')}"
            f"{_between(pair.get('kr_second_interval'))} "
            f"| {pair.get('kr_late_over_plain', 'not measured')} "
            f"| {pair.get('kr_training_over_plain', 'not measured')} "
            f"| {pair['kd_store_over_plain']} "
            f"| {pair.get('plain_again_over_plain', 'not measured')}"
            f"{_between(pair.get('plain_again_interval'))} "
            f"| {pair['online_kr_over_kr_store']} ({goal:.1f}; {in_seconds:.1f}) "
            f"| {pair['online_kd_over_kd_store']} |"
        )
    return lines


def _between(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" [{interval[0]}, {interval[1]}]"


def _options(result: Mapping[str, Any]) -> list[str]:
    names = [name for name in result["options"][0] if name != "student"]
    lines = [
        "A step of KR with the store under other settings of `train`, over the default (fp32, "
        f"contiguous, not compiled; below 1 is faster), on {result['device']}:",
        "",
        f"| student | {' | '.join(name.replace('_', ' ') for name in names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for row in result["options"]:
        lines.append(f"| {row['student']} | {' | '.join(f'{row[n]:.2f}' for n in names)} |")
    if result["device"] == "cpu":
        lines += ["", "On a GPU: see below."]
    return lines


def _widths(rows: list[Mapping[str, Any]]) -> list[str]:
    return [
        "A plain step, and the latency of one image, over those of width 16 "
        "(`student.width_multiple`):",
        "",
        "| width | parameters | step | latency |",
        "|---|---|---|---|",
        *(
            f"| {row['width']} | {row['num_parameters']:,} | {row['step']:.2f} "
            f"| {row['latency']:.2f} |"
            for row in rows
        ),
    ]


def _store(store: Mapping[str, Any]) -> list[str]:
    rows = []
    if "build_over_teacher_forward" in store:
        rows += [
            "| store built / teacher's bare forward (views per second) "
            f"| {store['build_over_teacher_forward']} | 0.90 |",
            f"| bytes per view and tap, {store['num_taps']} taps, {store['top_k']} of "
            f"{store['num_classes']} classes in {store['bits']} bits "
            f"| {store['bytes_per_view_and_tap']} | 24 |",
        ]
    if "accuracy_loss_points" in store:
        rows.append(
            "| accuracy lost against the exact store, points, "
            f"{store['accuracy_num_seeds']} seeds | {store['accuracy_loss_points']} "
            f"± {store['accuracy_loss_interval']} | 0.1 |"
        )
    return rows


def _loader(result: Mapping[str, Any]) -> list[str]:
    goals = {
        "dataloader_per_sample": ("DataLoader, per-sample transforms, 2 workers", "10"),
        "dataloader_batched": ("DataLoader, batched `__getitems__` and the same views", "1"),
        "dataloader_batched_workers": ("the same with 2 workers", "1"),
        "bare_gather_normalised": ("bare gather and normalisation, no views", "0.8"),
        "bare_gather": ("bare gather of uint8, no views, no normalisation", ""),
    }
    loader = result.get("loader", {})
    return [
        f"| loader / {title} | {loader[f'over_{name}']} | {goal} |"
        for name, (title, goal) in goals.items()
        if f"over_{name}" in loader
    ]


def _memory(result: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| MB resident in {count} trial(s) together | {megabytes:,.0f} | |"
        for count, megabytes in result.get("rss_mb", {}).items()
    ]
    private = result.get("private_mb_per_trial", {})
    return rows + [
        f"| MB private to each of 8 trials, with {size} | {megabytes:,.0f} | no growth |"
        for size, megabytes in private.items()
    ]
