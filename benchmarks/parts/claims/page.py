"""`docs/claims.md`, written from `benchmarks/results/claims.json` alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from krscale.files import write_atomic
from krscale.report.interval import half_width
from parts.claims.families import FEATURES, KR, LOGITS
from parts.claims.prose import CHOSEN, CIFAR, HEAD, HOW_TO_READ, REPEAT, STATED, TRIED

Json = Mapping[str, Any]


def write_page(result: Json, figures: Sequence[Path], path: Path) -> None:
    """Write the page atomically.

    Args:
        result: The content of `claims.json`.
        figures: Of `draw_figures`, relative to the page.
        path: Where the page goes.
    """
    text = page(result, {figure.stem: figure for figure in figures})
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def page(result: Json, figures: Mapping[str, Path]) -> str:
    """Return the whole page in Markdown; figures by the stem of their file."""
    parts = [
        HEAD,
        _state(result),
        "## In short\n\n" + _summary(result),
        "## The task\n\n" + _task(result),
        STATED,
        CHOSEN,
        HOW_TO_READ,
        "## Accuracy\n\n" + _accuracy(result) + _figure(figures, "claims-accuracy"),
        "## C1: residual by depth\n\n" + _residual(result) + _figure(figures, "claims-residual"),
        "## C2: convergence\n\n" + _speed(result) + _figure(figures, "claims-convergence"),
        "## C3: against the best opponent\n\n" + _gains(result),
        "## C4: in combination\n\n" + _combinations(result),
        "## Where KR loses\n\n" + _losses(result) + "\n\n" + TRIED,
        CIFAR,
        REPEAT,
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _state(result: Json) -> str:
    # Commits between two families, of documents above all, leave each with a commit of its own.
    commits = sorted({commit.strip()[:12] for commit in result["commit"].split(",")})
    lines = [
        f"`{result['command']}` at commit `{', '.join(commits)}` on {result['machine']}; "
        f"{result['trial_seconds'] / 3600:.1f} hours of trainings, one core each, beside other "
        f"work; seeds {', '.join(map(str, result['seeds']))}. Every seed's numbers are in "
        "`benchmarks/results/claims.json`."
    ]
    if result["unfinished"]:
        lines.append(
            f"**Unfinished.** Not measured yet: {', '.join(result['unfinished'])}. What is missing "
            "below is missing for that reason; the same command continues."
        )
    return "\n\n".join(lines)


def _summary(result: Json) -> str:
    c1, c2, c3, c4 = (result[f"C{number}"] for number in range(1, 5))
    races = [e[KR] for e in c2["sizes"] if KR in e]
    to_kd = [race["steps_to_kd"] for race in races if "steps_to_kd" in race]
    to_plain = [race["steps_to_plain"] for race in races if "steps_to_plain" in race]
    gains = [gain for found in c4["methods"].values() for gain in found["gain"]]
    rows = [
        ("C1 aggregation lowers the residual of the deepest third", "by at least 30 %",
         _span(c1["deepest_third_reduction"], _percent), _goals(c1["deepest_third_reduction"]),
         c1["verdict"]),
        ("C2 steps to KD's final accuracy", "at most 60 % of KD's",
         _span(to_kd, _percent), _goals(to_kd), c2["verdict"]["kd"]),
        ("C2 steps to plain training's", "at most 40 % of plain's",
         _span(to_plain, _percent), _goals(to_plain), c2["verdict"]["plain"]),
        ("C3 gain over the best tuned opponent", "at least 1.0 point at every size",
         _span(c3["gain_over_best_opponent"], _points), _goals(c3["gain_over_best_opponent"]),
         c3["verdict"]),
        ("C4 KR with a method over that method alone", "above 0 at every size",
         _span(gains, _points), "", c4["verdict"]),
    ]  # fmt: skip
    return _table(
        ("claim", "goal", "measured, from size to size", "goal met", "the claim itself"), rows
    )


def _task(result: Json) -> str:
    task, teacher = result["task"], result["teacher"]
    glyphs, train, search = task["data"]["glyphs"], task["train"], task["search"]
    lines = [
        f"`glyphs`: {glyphs['num_classes']} classes of {glyphs['image_size']}x"
        f"{glyphs['image_size']} grey pixels, {glyphs['num_train']:,} training images, "
        f"{glyphs['num_val']:,} for validation and {glyphs['num_test']:,} for test, both of type "
        "faces that training never shows. Students are residual networks with one block in each of "
        f"three stages (3 taps), trained for {train['num_epochs']} epochs of "
        f"{result['steps_per_epoch']} steps.",
        f"Every method at every size: {search['trials_per_size']} trials (the first with its "
        f"defaults, then TPE; asynchronous halving from epoch {search['grace_epochs']}), chosen by "
        f"validation accuracy; the winner is trained again with {search['num_final_seeds']} fresh "
        "seeds, and only these see the test split, once.",
    ]
    if teacher:
        lines.append(
            f"Teacher: {teacher['model']} width {teacher['width']}, "
            f"{teacher['num_parameters']:,} parameters, {_share(teacher['test_accuracy'])} % on "
            f"test after {task['teacher']['num_epochs']} epochs."
        )
    sizes = [
        (size["capacity"], str(size["width"]), f"{size['num_parameters']:,}", f"{size['flops']:,}")
        for size in result["sizes"]
    ]
    return "\n\n".join([*lines, _table(("size", "width", "parameters", "FLOPs"), sizes)])


def _accuracy(result: Json) -> str:
    sizes = result["sizes"]
    names = list(dict.fromkeys(name for size in sizes for name in size["methods"]))
    best = {
        size["capacity"]: max(
            size["methods"],
            key=lambda name, m=size["methods"]: _mean(m[name]["test_accuracy"]),
            default="",
        )
        for size in sizes
    }
    rows = []
    for name in names:
        cells = []
        for size in sizes:
            values = size["methods"].get(name, {}).get("test_accuracy", [])
            cell = _with_half(values) if values else "-"
            cells.append(f"**{cell}**" if name == best[size["capacity"]] else cell)
        rows.append((f"`{name}`", *cells))
    head = ("test accuracy, %", *(size["capacity"] for size in sizes))
    note = "± is half the 95 % interval over the seeds; bold: best mean."
    return "\n\n".join([_table(head, rows), note, _tuning(result)])


def _tuning(result: Json) -> str:
    """Say how far the tuning got: with few trials it is luck, and the reader must know."""
    studies = [m for size in result["sizes"] for m in size["methods"].values()]
    first = result["task"]["train"]["learning_rate"]
    kept = sum(study["best"].get("train.learning_rate") == first for study in studies)
    trials = sum(study["num_trials"] for study in studies)
    pruned = sum(study["num_pruned"] for study in studies)
    return (
        f"How far the tuning got: {pruned} of {trials} trials were stopped early, and in {kept} of "
        f"{len(studies)} studies the winner kept the first trial's learning rate. "
        "The fewer trials, the more a method's place in this table is luck in the draw of its "
        "settings; the intervals do not hold that part."
    )


def _residual(result: Json) -> str:
    claim = result["C1"]
    if not claim["residual_by_depth"]:
        return "Not measured yet."
    rows = []
    for entry in claim["deepest_third_reduction"]:
        pair = claim["residual_by_depth"][entry["capacity"]]
        rows.append((
            entry["capacity"],
            *(_depths(pair[kind]) for kind in ("layer_wise", "aggregated")),
            _interval(entry, _percent), entry["verdict"], _yes(entry["goal_met"]),
        ))  # fmt: skip
    return (
        "Residual: mean KL divergence of the student from the teacher on validation, both read by "
        "linear probes at the same relative depth. The two students of a pair share seed, data and "
        "every setting but the granularity: the settings are those of KR's winner at the size, "
        "tuned with the granularity free; the other side was not tuned again, which favours the "
        "winner's side. Depths from the shallowest to the classifiers, mean over the seeds.\n\n"
        + _table(
            ("size", "layer by layer", "aggregated", "deepest third lower by", "claim", "goal met"),
            rows,
        )
        + f"\n\nC1: {claim['verdict']}."
    )


def _speed(result: Json) -> str:
    rows = []
    for entry in result["C2"]["sizes"]:
        for label in (KR, "kr_without_sparsity"):
            races = entry.get(label, {})
            if races:
                rows.append((
                    entry["capacity"], f"`{label}`",
                    *(_race(races.get(f"steps_to_{name}")) for name in ("kd", "plain")),
                ))  # fmt: skip
    if not rows:
        return "Not measured yet."
    gained = [
        (entry["capacity"], _interval(entry["accuracy_gained_by_sparsity"], _points),
         entry["accuracy_gained_by_sparsity"]["verdict"])
        for entry in result["C2"]["sizes"] if "accuracy_gained_by_sparsity" in entry
    ]  # fmt: skip
    text = (
        "Steps until a student's validation accuracy first reaches the accuracy with which KD's "
        "(plain's) training *of the same seed* ended, over the steps which that training itself "
        "needed to reach it first. Accuracy is measured at the end of an epoch and interpolated "
        "linearly in between. A student that never gets there counts with all its steps; how "
        "many did not stands in brackets, and then the ratio is a lower bound. All anneal their "
        "learning rate over the same number of epochs, which ties the largest gains to the end.\n\n"
        + _table(("size", "method", "steps to KD's accuracy", "steps to plain's"), rows)
    )
    if gained:
        text += "\n\nWhat sparsity changes in test accuracy, both tuned as long, in points:\n\n"
        text += _table(("size", "KR minus KR without sparsity", "better with sparsity"), gained)
    verdict = result["C2"]["verdict"]
    return text + f"\n\nC2: against KD {verdict['kd']}; against plain {verdict['plain']}."


def _gains(result: Json) -> str:
    claim = result["C3"]
    if not claim["gain_over_best_opponent"]:
        return "Not measured yet."
    first = [
        (e["capacity"], f"`{e['opponent']}`", _interval(e, _points), e["verdict"],
         _yes(e["goal_met"]))
        for e in claim["gain_over_best_opponent"]
    ]  # fmt: skip
    names = [name for name in (*LOGITS, *FEATURES) if name in claim["gain_over_each"][0]["gain"]]
    each = [
        (f"`{name}`", *(_interval(e["gain"][name], _points) if name in e["gain"] else "-"
                        for e in claim["gain_over_each"]))
        for name in names
    ]  # fmt: skip
    variants = [
        (e["capacity"], f"`{e['method']}`", f"`{e['opponent']}`", _interval(e, _points))
        for e in claim["gain_of_best_kr_variant"]
    ]
    capacities = [e["capacity"] for e in claim["gain_over_each"]]
    return "\n\n".join(
        [
            "Test accuracy of KR minus that of the opponent with the best *validation* accuracy at "
            "the size, paired by seed, in points with the 95 % interval:",
            _table(("size", "best opponent", "KR minus it", "KR is better", "goal met"), first),
            "KR minus each opponent:",
            _table(("opponent", *capacities), each),
            "The best of all methods with KR in them against the best of all without (both chosen "
            "on validation; beside the claim, since several KR methods had a budget each):",
            _table(("size", "with KR", "without", "difference"), variants),
            f"C3: {claim['verdict']}.",
        ]
    )


def _combinations(result: Json) -> str:
    methods = result["C4"]["methods"]
    if not methods:
        return "Not measured yet."
    capacities = [size["capacity"] for size in result["sizes"]]
    rows = []
    for name, found in methods.items():
        by_size = {entry["capacity"]: entry for entry in found["gain"]}
        cells = [_interval(by_size[c], _points) if c in by_size else "-" for c in capacities]
        rows.append((f"`kr+{name}` minus `{name}`", *cells, found["verdict"]))
    return (
        _table(("in points", *capacities, "better in combination"), rows)
        + f"\n\nC4: {result['C4']['verdict']} of method and size."
    )


def _losses(result: Json) -> str:
    lines = [
        f"- at {entry['capacity']}, `{name}` is better than `kr` by "
        f"{_points(-gain['mean'])} points (interval {_points(-gain['high'])} to "
        f"{_points(-gain['low'])})."
        for entry in result["C3"]["gain_over_each"]
        for name, gain in entry["gain"].items()
        if gain["verdict"] == "does not hold"
    ]
    lines += [
        f"- at {entry['capacity']}, `{name}` alone is better than `kr+{name}` by "
        f"{_points(-entry['mean'])} points."
        for name, found in result["C4"]["methods"].items()
        for entry in found["gain"]
        if entry["verdict"] == "does not hold"
    ]
    lines += [
        f"- at {entry['capacity']}, KR without sparsity is better than with it by "
        f"{_points(-entry['accuracy_gained_by_sparsity']['mean'])} points."
        for entry in result["C2"]["sizes"]
        if entry.get("accuracy_gained_by_sparsity", {}).get("verdict") == "does not hold"
    ]
    if not result["C3"]["gain_over_each"]:
        return "Not measured yet."
    head = "Beyond the interval over the seeds, on this task:"
    return "\n".join([head, "", *lines]) if lines else f"{head} nowhere."


def _race(race: Json | None) -> str:
    if race is None:
        return "-"
    censored = f" ({race['num_censored']} never)" if race["num_censored"] else ""
    goal = "; goal met" if race["goal_met"] else ""
    return f"{_interval(race, _percent)}{censored}: {race['verdict']}{goal}"


def _depths(by_seed: Sequence[Sequence[float]]) -> str:
    return " ".join(f"{_mean(values):.2f}" for values in zip(*by_seed, strict=True))


def _interval(entry: Json, show: Any) -> str:
    low, high = entry["low"], entry["high"]
    between = "one seed" if low is None or high is None else f"{show(low)} to {show(high)}"
    return f"{show(entry['mean'])} [{between}]"


def _span(entries: Sequence[Json], show: Any) -> str:
    means = [entry["mean"] for entry in entries]
    return f"{show(min(means))} to {show(max(means))}" if means else "not measured"


def _goals(entries: Sequence[Json]) -> str:
    return f"{sum(e['goal_met'] for e in entries)} of {len(entries)}" if entries else ""


def _with_half(values: Sequence[float]) -> str:
    half = half_width(values)
    return _share(_mean(values)) + ("" if half is None else f" ± {_share(half)}")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _share(value: float) -> str:
    return f"{100 * value:.1f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figure(figures: Mapping[str, Path], name: str) -> str:
    return f"\n\n![{name}]({figures[name].as_posix()})" if name in figures else ""
