"""`docs/claims.md`, written from `benchmarks/results/claims.json` alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from krscale.files import write_atomic
from parts.claims.families import KR, OPPONENTS
from parts.claims.formats import (
    Json,
    as_figure,
    as_goals,
    as_percent,
    as_points,
    as_share,
    as_span,
    as_table,
)
from parts.claims.prose import (
    BEFORE,
    CHOSEN,
    CIFAR,
    HEAD,
    HOW_TO_READ,
    OPPONENTS_NOTE,
    REPEAT,
    STATED,
    TRIED,
)
from parts.claims.sections import (
    accuracy,
    combinations,
    convergence,
    gains_over_opponents,
    losses,
    residual_by_depth,
    without_parts,
)


def write_page(result: Json, figures: Sequence[Path], path: Path) -> None:
    """Write the page atomically.

    Args:
        result: The content of `claims.json`.
        figures: Result of `draw_figures`, relative to the page.
        path: File of the page.
    """
    text = page(result, {figure.stem: figure for figure in figures})
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def page(result: Json, figures: Mapping[str, Path]) -> str:
    """Return the whole page in Markdown; figures by the stem of their file."""
    parts = [
        HEAD,
        _state(result),
        "## In short\n\n" + _summary(result["tasks"]),
        STATED,
        CHOSEN,
        OPPONENTS_NOTE,
        BEFORE,
        HOW_TO_READ,
        *(_of_task(task, figures) for task in result["tasks"]),
        TRIED,
        CIFAR,
        REPEAT,
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _of_task(task: Json, figures: Mapping[str, Path]) -> str:
    name = task["name"]
    parts = [
        f"## {task['title']}",
        _task(task),
        "### Accuracy\n\n" + accuracy(task) + as_figure(figures, f"claims-{name}-accuracy"),
        "### C1: residual by depth\n\n" + residual_by_depth(task)
        + as_figure(figures, f"claims-{name}-residual"),
        "### C2: convergence\n\n" + convergence(task)
        + as_figure(figures, f"claims-{name}-convergence"),
        "### C3: against the best opponent\n\n" + gains_over_opponents(task),
        "### C4: in combination\n\n" + combinations(task),
        "### KR without each of its parts\n\n" + without_parts(task),
        "### Where KR loses\n\n" + losses(task),
    ]  # fmt: skip
    return "\n\n".join(part.strip() for part in parts if part)


def _state(result: Json) -> str:
    lines = [
        f"`{result['command']}` on {result['machine']}. Every seed's numbers are in "
        "`benchmarks/results/claims.json`."
    ]
    if result["not_here"]:
        lines.append(f"**Not measured:** {', '.join(result['not_here'])}; the data was not there.")
    return "\n\n".join(lines)


def _summary(tasks: Sequence[Json]) -> str:
    rows = [row for task in tasks for row in _claims_of(task)]
    head = ("claim", "task", "goal", "measured, from size to size", "goal met", "the claim itself")
    return as_table(head, sorted(rows, key=lambda row: row[0]))


def _claims_of(task: Json) -> list[tuple[str, ...]]:
    c1, c2, c3, c4 = (task[f"C{number}"] for number in range(1, 5))
    races = [e[KR] for e in c2["sizes"] if KR in e]
    to_kd = [race["steps_to_kd"] for race in races if "steps_to_kd" in race]
    to_plain = [race["steps_to_plain"] for race in races if "steps_to_plain" in race]
    gains = [gain for found in c4["methods"].values() for gain in found["gain"]]
    title, reductions = task["title"], c1["deepest_third_reduction"]
    return [
        ("C1 aggregation lowers the residual of the deepest third", title, "by at least 30 %",
         as_span(reductions, as_percent), as_goals(reductions), c1["verdict"]),
        ("C2 steps to KD's final accuracy", title, "at most 60 % of KD's",
         as_span(to_kd, as_percent), as_goals(to_kd), c2["verdict"]["kd"]),
        ("C2 steps to plain training's", title, "at most 40 % of plain's",
         as_span(to_plain, as_percent), as_goals(to_plain), c2["verdict"]["plain"]),
        ("C3 gain over the best tuned opponent", title, "at least 1.0 point at every size",
         as_span(c3["gain_over_best_opponent"], as_points), as_goals(c3["gain_over_best_opponent"]),
         c3["verdict"] + _beside(task)),
        ("C4 KR with a method over that method alone", title, "above 0 at every size",
         as_span(gains, as_points), "", c4["verdict"]),
    ]  # fmt: skip


def _unmeasured(result: Json) -> list[str]:
    """Return the opponents without a result on a task."""
    measured = {name for size in result["sizes"] for name in size["methods"]}
    return [name for name in OPPONENTS if name not in measured]


def _searched_once(result: Json) -> list[str]:
    """Return which opponents have one search where others have more, and how far they trail."""
    once, behind = set(), []
    for size in result["sizes"]:
        tests = {name: entry["test_accuracy"] for name, entry in size["methods"].items()}
        means = {name: math.fsum(tests[name]) / len(tests[name]) for name in tests}
        best = max((means[name] for name in OPPONENTS if name in means), default=0.0)
        for name in OPPONENTS:
            if name in means and len(size["methods"][name]["searches"]) < result["num_searches"]:
                once.add(name)
                behind.append(best - means[name])
    if not once:
        return []
    names = ", ".join(f"`{name}`" for name in OPPONENTS if name in once)
    least, most = (f"{100 * gap:.1f}" for gap in (min(behind), max(behind)))
    return [
        f"Searched once: {names}. They are {least} to {most} points below the best opponent of "
        "their size."
    ]


def _unless_named(result: Json) -> str:
    """Return a restriction if some methods have fewer searches than others."""
    few = _searched_once(result) or _variants_searched_once(result)
    return ", but for those named below" if few else ""


def _variants_searched_once(result: Json) -> list[str]:
    """Return which methods with KR in them have one search where others have more."""
    once = dict.fromkeys(
        name
        for size in result["sizes"]
        for name, entry in size["methods"].items()
        if name not in OPPONENTS and len(entry["searches"]) < result["num_searches"]
    )
    names = ", ".join(f"`{name}`" for name in once)
    return [f"Searched once, of those with KR in them: {names}."] if once else []


def _beside(result: Json) -> str:
    """Return how many opponents a verdict is based on, if not on all of them."""
    num_measured = len(OPPONENTS) - len(_unmeasured(result))
    if num_measured in (0, len(OPPONENTS)):
        return ""
    return f"; against {num_measured} of {len(OPPONENTS)} opponents"


def _task(result: Json) -> str:
    task, teacher = result["task"], result["teacher"]
    train, search = task["train"], task["search"]
    # Commits made between two families, mostly of documents, give each family its own commit.
    commits = sorted({commit.strip()[:12] for commit in result["commit"].split(",")})
    searches = {1: "one search", 2: "two independent searches"}
    number = searches.get(result["num_searches"], f"{result['num_searches']} independent searches")
    lines = [
        f"{_images(result)} Students are residual networks with "
        f"{task['student']['options']['num_blocks']} block(s) in each of three stages, trained for "
        f"{train['num_epochs']} epochs of {result['steps_per_epoch']} steps.",
        f"Every method at every size{_unless_named(result)}: {number} of "
        f"{search['trials_per_size']} trials (the first "
        "with its defaults, then TPE; asynchronous halving from epoch "
        f"{search['grace_epochs']}), chosen by validation accuracy; each winner is trained again "
        f"with {search['num_final_seeds']} fresh seeds, and only these see the test split, once.",
        f"Commit `{', '.join(commits)}`; {result['trial_seconds'] / 3600:.1f} hours of trainings, "
        f"one core each, beside other work; seeds {', '.join(map(str, result['seeds']))}.",
    ]
    if teacher:
        lines.append(
            f"Teacher: {teacher['model']} width {teacher['width']}, "
            f"{teacher['num_parameters']:,} parameters, {as_share(teacher['test_accuracy'])} % on "
            f"test after {task['teacher']['num_epochs']} epochs. {result['published']}".strip()
        )
    lines += _searched_once(result) + _variants_searched_once(result)
    if without := [f"`{name}`" for name in _unmeasured(result)]:
        lines.append(f"Opponents that were not measured on this task: {', '.join(without)}.")
    if len(found := result.get("teachers_test_accuracy", ())) > 1:
        lines.append(
            f"**Not one teacher.** Searches ran where the same recipe gave teachers of "
            f"{' and '.join(as_share(accuracy) for accuracy in found)} % on test; differences "
            "between their methods include that."
        )
    if "distill" not in task:
        lines.append(
            "**KR here is its first formulation**: probes that read means over all positions, and "
            "auxiliary groups that teach to the end. The second one, today's default "
            "([what changed](knowledge-representing.md#the-first-formulation)), has not been "
            "measured against tuned opponents yet."
        )
    if result["unfinished"]:
        lines.append(
            f"**Unfinished.** Not measured yet: {', '.join(result['unfinished'])}. What is missing "
            "below is missing for that reason; the same command continues."
        )
    sizes = [
        (size["capacity"], str(size["width"]), f"{size['num_parameters']:,}", f"{size['flops']:,}")
        for size in result["sizes"]
    ]
    return "\n\n".join([*lines, as_table(("size", "width", "parameters", "FLOPs"), sizes)])


def _images(result: Json) -> str:
    data = result["task"]["data"]
    if data["source"] == "glyphs":
        glyphs = data["glyphs"]
        return (
            f"`glyphs`: {glyphs['num_classes']} classes of {glyphs['image_size']}x"
            f"{glyphs['image_size']} grey pixels, {glyphs['num_train']:,} training images, "
            f"{glyphs['num_val']:,} for validation and {glyphs['num_test']:,} for test, both of "
            "type faces that training never shows."
        )
    part = f" (`data.max_images = {data['max_images']}`)" if data["max_images"] else ""
    return (
        f"{result['num_train']:,} training images{part}, {100 * data['val_fraction']:.0f} % of "
        "those taken are held out for validation; the test split is the authors' own, whole."
    )
