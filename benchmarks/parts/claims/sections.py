"""The sections of `docs/claims.md` on one task, each only from the task's results."""

from __future__ import annotations

from parts.claims.families import FEATURES, KR, LOGITS
from parts.claims.formats import (
    Json,
    as_depths,
    as_interval,
    as_mean_with_half,
    as_percent,
    as_points,
    as_race,
    as_table,
    as_yes,
    mean_of,
)


def accuracy(result: Json) -> str:
    """Return the section on the test accuracy of every method at every size."""
    sizes = result["sizes"]
    names = list(dict.fromkeys(name for size in sizes for name in size["methods"]))
    best = {
        size["capacity"]: max(
            size["methods"],
            key=lambda name, m=size["methods"]: mean_of(m[name]["test_accuracy"]),
            default="",
        )
        for size in sizes
    }
    rows = []
    for name in names:
        cells = []
        for size in sizes:
            values = size["methods"].get(name, {}).get("test_accuracy", [])
            cell = as_mean_with_half(values) if values else "-"
            cells.append(f"**{cell}**" if name == best[size["capacity"]] else cell)
        rows.append((f"`{name}`", *cells))
    head = ("test accuracy, %", *(size["capacity"] for size in sizes))
    note = "± is half the 95 % interval over the seeds; bold: best mean."
    parts = [as_table(head, rows), note, _flat(result), _former_losses(result), _tuning(result)]
    return "\n\n".join(part for part in parts if part)


def _flat(result: Json) -> str:
    """Return how much validation accuracy still rose in the last fifth of the epochs, in words."""
    last = max(1, result["task"]["train"]["num_epochs"] // 5)
    rises = [
        100 * (curve[-1] - curve[-1 - last])
        for size in result["sizes"]
        for method in size["methods"].values()
        for curve in method["val_curves"]
        if len(curve) > last
    ]
    if not rises:
        return ""
    return (
        f"In the last {last} epochs the validation accuracy of a final training rose by "
        f"{mean_of(rises):.1f} points on average."
    )


def _former_losses(result: Json) -> str:
    """Return which results are of losses that have changed since; empty if none is."""
    methods = [size["methods"]["at"] for size in result["sizes"] if "at" in size["methods"]]
    winners = [search["best"] for method in methods for search in method["searches"]]
    if all("distill.at_reduction" in best for best in winners):
        return ""
    return (
        "These results are older than two changes: `at` summed over positions (today "
        '`distill.at_reduction = "sum"`; the default is the mean, as in the authors\' code), and '
        "`logit_standardisation` divided by the biased deviation."
    )


def _tuning(result: Json) -> str:
    """Return how extensive the tuning was: with few trials its result depends on chance."""
    studies = [m for size in result["sizes"] for m in size["methods"].values()]
    first = result["task"]["train"]["learning_rate"]
    winners = [search["best"] for study in studies for search in study["searches"]]
    kept = sum(best.get("train.learning_rate") == first for best in winners)
    trials = sum(study["num_trials"] for study in studies)
    pruned = sum(study["num_pruned"] for study in studies)
    return (
        f"How far the tuning got: {pruned} of {trials} trials were stopped early, and in {kept} of "
        f"{len(winners)} studies the winner kept the first trial's learning rate. "
        "The fewer trials, the more a method's place in this table is luck in the draw of its "
        "settings; the ± above does not hold that part."
    )


def residual_by_depth(result: Json) -> str:
    """Return the section on C1."""
    claim = result["C1"]
    if not claim["residual_by_depth"]:
        return "Not measured yet."
    rows = []
    for entry in claim["deepest_third_reduction"]:
        pair = claim["residual_by_depth"][entry["capacity"]]
        rows.append((
            entry["capacity"],
            *(as_depths(pair[kind]) for kind in ("layer_wise", "aggregated")),
            as_interval(entry, as_percent), entry["verdict"], as_yes(entry["goal_met"]),
        ))  # fmt: skip
    return (
        "Residual: mean KL divergence of the student from the teacher on validation, both read by "
        "linear probes at the same relative depth. The two students of a pair share seed, data and "
        "every setting but the granularity: the settings are those of KR's winner at the size, "
        "tuned with the granularity free; the other side was not tuned again, which favours the "
        "winner's side. Depths from the shallowest to the classifiers, mean over the seeds.\n\n"
        + as_table(
            ("size", "layer by layer", "aggregated", "deepest third lower by", "claim", "goal met"),
            rows,
        )
        + f"\n\nC1: {claim['verdict']}."
    )


def convergence(result: Json) -> str:
    """Return the section on C2."""
    rows = []
    for entry in result["C2"]["sizes"]:
        for label in (KR, "kr_without_sparsity"):
            races = entry.get(label, {})
            if races:
                rows.append((
                    entry["capacity"], f"`{label}`",
                    *(as_race(races.get(f"steps_to_{name}")) for name in ("kd", "plain")),
                ))  # fmt: skip
    if not rows:
        return "Not measured yet."
    gained = [
        (entry["capacity"], as_interval(entry["accuracy_gained_by_sparsity"], as_points),
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
        + as_table(("size", "method", "steps to KD's accuracy", "steps to plain's"), rows)
    )
    if gained:
        text += "\n\nWhat sparsity changes in test accuracy, both tuned as long, in points:\n\n"
        text += as_table(("size", "KR minus KR without sparsity", "better with sparsity"), gained)
    verdict = result["C2"]["verdict"]
    return text + f"\n\nC2: against KD {verdict['kd']}; against plain {verdict['plain']}."


def gains_over_opponents(result: Json) -> str:
    """Return the section on C3."""
    claim = result["C3"]
    if not claim["gain_over_best_opponent"]:
        return "Not measured yet."
    first = [
        (e["capacity"], f"`{e['opponent']}`", as_interval(e, as_points), e["verdict"],
         as_yes(e["goal_met"]))
        for e in claim["gain_over_best_opponent"]
    ]  # fmt: skip
    names = [name for name in (*LOGITS, *FEATURES) if name in claim["gain_over_each"][0]["gain"]]
    each = [
        (f"`{name}`", *(as_interval(e["gain"][name], as_points) if name in e["gain"] else "-"
                        for e in claim["gain_over_each"]))
        for name in names
    ]  # fmt: skip
    variants = [
        (e["capacity"], f"`{e['method']}`", f"`{e['opponent']}`", as_interval(e, as_points))
        for e in claim["gain_of_best_kr_variant"]
    ]
    capacities = [e["capacity"] for e in claim["gain_over_each"]]
    return "\n\n".join(
        [
            "Test accuracy of KR minus that of the opponent with the best *validation* accuracy at "
            "the size, paired by seed, in points with the 95 % interval:",
            as_table(("size", "best opponent", "KR minus it", "KR is better", "goal met"), first),
            "KR minus each opponent:",
            as_table(("opponent", *capacities), each),
            "The best of all methods with KR in them against the best of all without (both chosen "
            "on validation; beside the claim, since several KR methods had a budget each):",
            as_table(("size", "with KR", "without", "difference"), variants),
            f"C3: {claim['verdict']}.",
        ]
    )


def combinations(result: Json) -> str:
    """Return the section on C4."""
    methods = result["C4"]["methods"]
    if not methods:
        return "Not measured yet."
    capacities = [size["capacity"] for size in result["sizes"]]
    rows = []
    for name, found in methods.items():
        by_size = {entry["capacity"]: entry for entry in found["gain"]}
        cells = [as_interval(by_size[c], as_points) if c in by_size else "-" for c in capacities]
        rows.append((f"`kr+{name}` minus `{name}`", *cells, found["verdict"]))
    return (
        as_table(("in points", *capacities, "better in combination"), rows)
        + f"\n\nC4: {result['C4']['verdict']} of method and size."
    )


def without_parts(result: Json) -> str:
    """Return the section on what KR loses without each of its parts."""
    if not result["ablations"]:
        return "Not measured yet."
    rows = [
        (e["capacity"], e["part"], as_interval(e, as_points), e["verdict"])
        for e in result["ablations"]
    ]
    return (
        "Test accuracy of KR's winner of the first search minus that of the same settings without "
        "one part, in points, paired by seed; nothing was tuned again, which favours KR.\n\n"
        + as_table(("size", "KR", "KR minus it", "better with the part"), rows)
    )


def losses(result: Json) -> str:
    """Return the section on where KR loses beyond the interval over the seeds."""
    lost = [
        (entry["capacity"], f"`{name}` is better than `kr`", gain)
        for entry in result["C3"]["gain_over_each"]
        for name, gain in entry["gain"].items()
    ]
    lost += [
        (entry["capacity"], f"`{name}` alone is better than `kr+{name}`", entry)
        for name, found in result["C4"]["methods"].items()
        for entry in found["gain"]
    ]
    lost += [
        (entry["capacity"], "KR without sparsity is better than with it", gain)
        for entry in result["C2"]["sizes"]
        if (gain := entry.get("accuracy_gained_by_sparsity"))
    ]
    lines = [
        f"- at {capacity}, {what} by {as_interval(_turned(gain), as_points)} points"
        + ("." if gain["verdict"] == "does not hold" else "; undecided over searches.")
        for capacity, what, gain in lost
        if gain["high"] is not None and gain["high"] < 0.0
    ]
    if not result["C3"]["gain_over_each"]:
        return "Not measured yet."
    head = "Beyond the interval over the seeds, on this task:"
    return "\n".join([head, "", *lines]) if lines else f"{head} nowhere."


def _turned(gain: Json) -> Json:
    """Return a difference and its intervals with reversed signs."""
    turned = {"mean": -gain["mean"], "low": -gain["high"], "high": -gain["low"]}
    over = gain.get("over_searches")
    return {**turned, "over_searches": over and _turned(over)}
