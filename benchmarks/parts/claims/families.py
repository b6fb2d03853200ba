"""The searches of the benchmark: families of methods, each with its own runs on every task.

All families of a task read the same job and differ only in their methods. So they share data,
teacher and store, and the others stay finished after a change to one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from krscale.config.distillation import DistillConfig

KR = "kr"
WITHOUT_SPARSITY = "kr_without_sparsity"
LAYER_WISE = "kr_layer_wise"
AGGREGATED = "kr_aggregated"
LOGITS = ("plain", "label_smoothing", "kd", "dkd", "dist", "logit_standardisation")
FEATURES = ("fitnet", "at", "pkt", "crd", "reviewkd", "rkd")
OPPONENTS = (*LOGITS, *FEATURES)
POSTERIORS = ("kd", "dkd", "dist", "logit_standardisation")
COMBINED = tuple(f"{KR}+{term}" for term in POSTERIORS)


@dataclass(frozen=True)
class Family:
    """Methods that are tuned in one search.

    Attributes:
        name: Part of the name of its runs.
        methods: Its methods, by krscale's names.
        changes: Further overrides of the job.
        label: Name of its method in the results, if it is not the method's own name.
        tasks: Names of the tasks on which it is searched; empty for all of them.
        max_searches: Maximum number of its searches.
        once: Names of the tasks on which it is searched once.
        traced: Whether C1 needs the residuals of its final students at every depth.
    """

    name: str
    methods: tuple[str, ...]
    changes: tuple[str, ...] = ()
    label: str = ""
    tasks: tuple[str, ...] = ()
    max_searches: int = 2
    once: tuple[str, ...] = ()
    traced: bool = False

    def label_of(self, method: str) -> str:
        """Return the name of one of its methods in the results."""
        return self.label or method


def partner(capacity: str, best: Mapping[str, Any], num_taps: int) -> Family:
    """Return the final trainings that C1 compares with those of KR's winner at a size.

    They have the same settings and seeds, without tuning, but another granularity: one group for
    every tap, or, if the winner already has that, half as many groups.

    Args:
        capacity: The size.
        best: The winner's settings.
        num_taps: The teacher's taps, the classifier included.
    """
    layer_wise = not is_layer_wise(best, num_taps)
    changed = {"distill.granularity": num_taps if layer_wise else num_taps // 2}
    name, label = ("c1", LAYER_WISE) if layer_wise else ("c1", AGGREGATED)
    return replace(finals_with(changed, capacity, best, name, label), traced=True)


def again(capacity: str, best: Mapping[str, Any]) -> Family:
    """Return the final trainings of KR's winner at a size, once more, so that C1 can trace them.

    They have the same settings and seeds. For searches that ended before their task required it.
    """
    return replace(finals_with({}, capacity, best, "c1-winner", KR), traced=True)


def ablations(capacity: str, best: Mapping[str, Any], distill: DistillConfig) -> list[Family]:
    """Return the final trainings of KR's winner at a size, each without one part of the method.

    Nothing is tuned again. A part that the winner itself does not have is skipped.

    Args:
        capacity: The size.
        best: The winner's settings.
        distill: Its settings that the search did not vary.
    """
    fixed = {f"distill.{name}": value for name, value in distill.model_dump(mode="json").items()}
    return [
        finals_with(changed, capacity, best, name.replace(" ", "-").replace("'", ""), name)
        for name, changed in ABLATIONS.items()
        if any({**fixed, **best}[path] != value for path, value in changed.items())
    ]


def finals_with(
    changed: Mapping[str, Any], capacity: str, best: Mapping[str, Any], name: str, label: str
) -> Family:
    """Return the final trainings of KR at a size with the settings of a winner, some changed."""
    settings = {**best, **changed}
    return Family(
        f"{name}-{capacity.replace('/', '-')}",
        (KR,),
        (
            f"ladder.capacities={json.dumps([capacity])}",
            "search.space=fixed",
            "search.trials_per_size=1",
            *(f"{path}={json.dumps(value)}" for path, value in settings.items()),
        ),
        label,
    )


def is_layer_wise(best: Mapping[str, Any], num_taps: int) -> bool:
    """Return whether settings of KR give every tap its own group."""
    return best.get("distill.granularity") in (num_taps, "layer")


CHEAP = ("glyphs",)
"""The tasks whose steps are cheapest, used for `--quick` and for KR tuned without sparsity."""
FAR_BEHIND = ("glyphs", "cifar10")
"""Tasks on which some families are searched only once: by the test accuracies of their first search
they were 1.1 to 9.7 points below the best opponent of every size. These accuracies decided only
what is measured again, and no setting; a second search might still bring one of them near."""

_WITH_WHERE = ("search.space=claims_where",)
FAMILIES = (
    Family("kr", (KR,), _WITH_WHERE, traced=True),
    Family("baselines", ("plain", "kd"), once=("cifar10",)),
    Family("features", ("crd", "at", "fitnet")),
    Family("logits", ("dkd", "dist", "label_smoothing"), once=FAR_BEHIND),
    Family("reviewkd", ("reviewkd",)),
    Family("rkd", ("rkd",), once=FAR_BEHIND),
    Family(
        "without-sparsity",
        (KR,),
        ("distill.sparsity=0.0", "search.space=claims_without_sparsity"),
        WITHOUT_SPARSITY,
        CHEAP,
        1,
    ),
    Family("combined", COMBINED, _WITH_WHERE, max_searches=1),
    Family("others", ("logit_standardisation", "pkt"), max_searches=1),
)
"""In the order in which they run: the most decisive come first (C2 and C3 against the strongest),
and each is small, so that little is lost if a run ends within one. Families that do not decide C3
are searched once: two searches of everything else take about 30 CPU hours."""

ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "without aggregation": {"distill.granularity": "layer"},
    "without sparsity": {"distill.sparsity": 0.0},
    "without the probes' grid": {"distill.probe_grid": 1},
    "without alignment by stage": {"distill.alignment": "depth"},
    "without a schedule": {
        "distill.auxiliary_schedule": "constant",
        "distill.where_schedule": "constant",
    },
    "without the where-distribution": {"distill.where_weight": 0.0},
}
"""Parts of KR, and the settings that leave each of them out."""
QUICK = (
    'ladder.capacities=["1/100","1/32"]',
    "data.glyphs.num_train=640",
    "data.glyphs.num_val=500",
    "data.glyphs.num_test=500",
    "teacher.num_epochs=8",
    "train.num_epochs=3",
    "search.grace_epochs=1",
    "search.trials_per_size=2",
    "search.num_final_seeds=2",
)
"""Settings of `--quick`: the whole path in minutes; its numbers mean little."""
