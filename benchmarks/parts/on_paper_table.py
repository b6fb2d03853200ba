"""The tables and sentences of `docs/scaling.md`, from what `on_paper.py` computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from parts.at_size import GIGA, Assumed, Measured, Task
from parts.on_paper import Demand, OnPaper

HOUR = 3600.0
FINALS = "final trainings"


def tasks_table(tasks: Sequence[Task], measured: Measured) -> str:
    """Return the sizes of the tasks."""
    rows: dict[str, list[str]] = {
        "training images, classes": [f"{t.num_train:,}, 1,000" for t in tasks],
        "mapped pixels": [f"{t.data_bytes / GIGA:,.1f} GB" for t in tasks],
        "teacher: parameters, GFLOPs, activations": [
            f"{t.teacher.parameters / 1e6:.1f} M, {t.teacher.flops / GIGA:.1f}, "
            f"{t.teacher.activations / 1e6:.1f} M"
            for t in tasks
        ],
        "students: parameters": [
            ", ".join(f"{s.parameters / 1e6:.2f} M" for s in t.students) for t in tasks
        ],
        "taps, views": [f"{t.num_taps}, {t.num_views}" for t in tasks],
        f"store, per view and tap ({measured.bits} bits a class)": [
            f"{t.layout(measured.bits).bytes_per_view_and_tap:.0f} bytes" for t in tasks
        ],
        "store of places, per view": [f"{t.where_bytes} bytes" for t in tasks],
        "stores, all views": [f"{t.store_bytes(measured.bits) / GIGA:.1f} GB" for t in tasks],
        "the same with every class in 16 bits": [
            f"{t.store_bytes(16) / GIGA:.1f} GB" for t in tasks
        ],
    }
    return _table(["", *(task.name for task in tasks)], rows)


def phases_table(searches: Sequence[OnPaper]) -> str:
    """Return hours of every phase, the GPU-hours that are used and paid, and what they cost."""
    rows: dict[str, list[str]] = {}
    for search in searches:
        for name, phase in search.phases().items():
            rows.setdefault(name, []).append(f"{phase.wall / HOUR:.2f}")
        price = search.assumed.dollars_per_gpu_hour
        paid, used = _paid(search), sum(p.used for p in search.phases().values()) / HOUR
        whole = {
            "all, hours": f"{paid / search.gpus:.1f}",
            "GPU-hours used, paid": f"{used:,.0f}, {paid:,.0f}",
            "share of the GPUs' time that computes": f"{used / paid:.0%}",
            "cost": f"${paid * price:,.0f}",
            "cost, with images, teacher and probes prepared on one GPU": (
                f"${_paid(search, prepared=True) * price:,.0f}"
            ),
        }
        for name, cell in whole.items():
            rows.setdefault(name, []).append(cell)
    return _table(["hours", *map(_title, searches)], rows)


def demands_table(searches: Sequence[OnPaper]) -> str:
    """Return the demand on every resource while trials run, and its share of what is available."""
    rows: dict[str, list[str]] = {}
    for search in searches:
        for name, demand in search.demands().items():
            rows.setdefault(name, []).append(_demand(demand))
    return _table(["asked / there", *map(_title, searches)], rows)


def exchange_table(searches: Sequence[OnPaper]) -> str:
    """Return what sharing one training costs."""
    rows: dict[str, list[str]] = {}
    for search in searches:
        networks = {"teacher": search.task.teacher, "largest student": search.task.students[-1]}
        for name, network in networks.items():
            found = search.exchange(network, search.gpus)
            rows.setdefault(f"{name}: ms of a step to compute, gradients, batch norm", []).append(
                ", ".join(f"{1e3 * s:.1f}" for s in (found.compute, found.gradients, found.norms))
            )
            rows.setdefault(f"{name}: of one GPU's speed, each", []).append(
                f"{found.efficiency:.0%}"
            )
    return _table(["one training on all GPUs", *map(_title, searches)], rows)


def conclusions(searches: Sequence[OnPaper]) -> str:
    """Return the conclusions, in sentences whose figures are computed."""
    few, many = searches[0], searches[-1]
    bounds = {search.step_seconds(s)[1] for search in searches for s in search.task.students}
    bound = " or ".join({"memory": "the GPU's memory"}.get(b, b) for b in sorted(bounds))
    phases = many.phases()
    waiting = sum(phases[name].wall for name in ("images decoded", "probes fitted")) * many.gpus
    filling, finals = (
        phases[name].wall / 60 for name in ("data and stores read by all machines", FINALS)
    )
    inside = many.assumed.gpus_per_node
    saved = few.with_the_teacher_in_every_step() / few.phases()["trials"].used
    lines = [
        "**What saturates first** beside the GPUs is the shared storage, wherever the memory of a "
        "machine has no room for data and stores: then each epoch reads them again. With room "
        f"for them it is the first reading: {filling:,.0f} minutes for {_title(many)}. "
        f"{_beyond(searches)}",
        f"**With {many.gpus} GPUs there are too few trials**: {many.num_finals} final trainings "
        f"on one GPU each leave {many.gpus - many.num_finals} idle for {finals:,.0f} minutes, and "
        f"{many.num_trials / many.gpus:.1f} trials for each GPU end unevenly. {many.gpus} trials "
        "start before the first has ended, so the sampler learns from fewer. With "
        f"`train.num_workers = {inside}` a training of the largest student would end "
        f"{inside * many.exchange(many.task.students[-1], inside).efficiency:.1f} times as soon.",
        f"**A student's step** is bound by {bound} and not by arithmetic, as far as the "
        "assumptions go. Several students on a GPU (`search.gpus_per_trial`) should save most "
        "where the kernels' starts bound it; no figure here counts on that.",
        f"**What one machine does alone** (images decoded, probes fitted) costs "
        f"{waiting / HOUR:,.0f} GPU-hours while {many.gpus} GPUs are paid for. `krscale teach` on "
        "one machine, before the others are rented, leaves data, teacher and stores in the "
        "storage.",
        f"**The teacher once, or in every step**: for {few.task.name} the trials would take "
        f"{saved:.1f} times the GPU-hours if each of them ran the teacher.",
        "**Journal, MLflow and the driver** are far from their limits with trials this long.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def assumed_table(assumed: Assumed) -> str:
    """Return every assumption, with its meaning from the class's docstring."""
    text = " ".join((Assumed.__doc__ or "").partition("Attributes:")[2].split())
    names = [field.name for field in fields(Assumed)]
    rows = {}
    for name, after in zip(names, [*names[1:], ""], strict=True):
        meaning = text.partition(f"{name}: ")[2]
        meaning = meaning.partition(f" {after}: ")[0] if after else meaning
        value = getattr(assumed, name)
        shown = ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:,g}"
        rows[f"`{name}`"] = [shown, meaning.rstrip(".")]
    return _table(["assumed", "value", "meaning"], rows)


def measured_table(measured: Measured) -> str:
    """Return what was taken from this repository's results."""
    rows = {
        "a step of KR with the store over a plain one, the worst of three students": [
            f"{measured.kr_over_plain:.3f}", "`gpu.json`"
        ],
        "least time of a part of a step (`train.gradient_accumulation`): kernels' starts": [
            f"{measured.part_ms:.1f} ms", "`gpu.json`"
        ],
        "pixels gathered by one thread, images of 32 pixels": [
            f"{measured.gather_gb_s:.1f} GB/s", "`step.json`"
        ],
        "bits in which a store keeps a class, for 45 classes and an error of 0.08": [
            f"{measured.bits}", "`step.json`"
        ],
        "the driver's CPU for a trial": [f"{measured.driver_ms:.0f} ms", "`search.json`"],
        "the journal of a trial": [f"{measured.journal_bytes:,.0f} bytes", "`search.json`"],
        "epochs that run of those planned, with the default early stopping, simulated": [
            f"{measured.epochs_share:.2f}", "`search.json`"
        ],
    }  # fmt: skip
    return _table(["measured", "value", "in `benchmarks/results/`"], rows)


def _beyond(searches: Sequence[OnPaper]) -> str:
    """Name the other resources of which more than half is needed."""
    largest: dict[str, tuple[float, str]] = {}
    for search in searches:
        for name, demand in search.demands().items():
            share = demand.asked / demand.there if demand.there else 0.0
            if 0.5 < share <= 1.0:
                largest[name] = max(largest.get(name, (0.0, "")), (share, _title(search)))
    named = [f"{name}, {share:.0%} for {where}" for name, (share, where) in largest.items()]
    return f"Then come {'; '.join(named)}." if named else ""


def _paid(search: OnPaper, *, prepared: bool = False) -> float:
    """Return the GPU-hours that are paid; if `prepared`, the first phases need only one GPU."""
    first = ("images decoded", "teacher trained", "probes fitted") if prepared else ()
    return sum(
        phase.wall * (1 if name in first else search.gpus)
        for name, phase in search.phases().items()
    ) / HOUR  # fmt: skip


def _demand(demand: Demand) -> str:
    asked = f"{demand.asked:,.2g}" if demand.asked < 10 else f"{demand.asked:,.0f}"
    if not demand.there:
        return f"{asked} {demand.unit}"
    share = demand.asked / demand.there
    shown = "below 1%" if share < 0.01 else f"{share:.0%}" if share < 10 else f"{share:.0f} times"
    there = f"{demand.there:,.2g}" if demand.there < 10 else f"{demand.there:,.0f}"
    return f"{asked} / {there} {demand.unit} ({shown})"


def _title(search: OnPaper) -> str:
    return f"{search.task.side} pixels, {search.gpus} GPUs"


def _table(head: Sequence[str], rows: dict[str, list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(row)} |" for name, row in rows.items())])
