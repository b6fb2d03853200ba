"""The searches of the benchmark: families of methods on one task, each with a run of its own.

All families read `jobs/claims.toml` and differ in their methods alone, so that they share data,
teacher and store, and a change to one leaves the others finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krscale.config import Experiment, load
from parts.measuring import ROOT

JOB = ROOT / "jobs" / "claims.toml"
KR = "kr"
WITHOUT_SPARSITY = "kr_without_sparsity"
LAYER_WISE = "kr_layer_wise"
AGGREGATED = "kr_aggregated"
LOGITS = ("plain", "label_smoothing", "kd", "dkd", "dist", "logit_standardisation")
FEATURES = ("fitnet", "at", "pkt", "crd")
OPPONENTS = (*LOGITS, *FEATURES)
POSTERIORS = ("kd", "dkd", "dist", "logit_standardisation")
COMBINED = tuple(f"{KR}+{term}" for term in POSTERIORS)


@dataclass(frozen=True)
class Family:
    """Methods that are tuned in one search.

    Attributes:
        name: The run is called `claims-NAME`.
        methods: Its methods, by krscale's names.
        changes: Further overrides of the job.
        label: What the results call its method, where that is not the method's own name.
    """

    name: str
    methods: tuple[str, ...]
    changes: tuple[str, ...] = ()
    label: str = ""

    def label_of(self, method: str) -> str:
        """Return what the results call one of its methods."""
        return self.label or method

    def overrides(self, storage: Path, changes: Sequence[str]) -> list[str]:
        """Return every `--set` of its search: those of all families, then its own."""
        return [
            f"storage_path={json.dumps(str(storage))}",
            *changes,
            f"name=claims-{self.name}",
            f"search.methods={json.dumps(self.methods)}",
            *self.changes,
        ]

    def experiment(self, storage: Path, changes: Sequence[str]) -> Experiment:
        """Return the experiment of its search."""
        return load(str(JOB), self.overrides(storage, changes))


def partner(capacity: str, best: Mapping[str, Any], num_taps: int) -> Family:
    """Return the final trainings that C1 compares with those of KR's winner at a size.

    The same settings and seeds, nothing tuned, another granularity: every tap by itself; or, where
    the winner already has that, half as many groups.

    Args:
        capacity: The size.
        best: The winner's settings.
        num_taps: The teacher's taps, the classifier included.
    """
    layer_wise = not is_layer_wise(best, num_taps)
    settings = {**best, "distill.granularity": num_taps if layer_wise else num_taps // 2}
    return Family(
        f"c1-{capacity.replace('/', '-')}",
        (KR,),
        (
            f"ladder.capacities={json.dumps([capacity])}",
            "search.space=fixed",
            "search.trials_per_size=1",
            *(f"{path}={json.dumps(value)}" for path, value in settings.items()),
        ),
        LAYER_WISE if layer_wise else AGGREGATED,
    )


def is_layer_wise(best: Mapping[str, Any], num_taps: int) -> bool:
    """Say whether settings of KR give every tap a group of its own."""
    return best.get("distill.granularity") in (num_taps, "layer")


FAMILIES = (
    Family("logits", LOGITS),
    Family("kr", (KR,)),
    Family(
        "without-sparsity",
        (KR,),
        ("distill.sparsity=0.0", "search.space=claims_without_sparsity"),
        WITHOUT_SPARSITY,
    ),
    Family("combined", COMBINED),
    Family("features", FEATURES),
)
"""In the order in which they run: what most claims need comes first."""

QUICK = (
    "data.glyphs.num_train=640",
    "data.glyphs.num_val=500",
    "data.glyphs.num_test=500",
    "teacher.num_epochs=8",
    "train.num_epochs=3",
    "search.grace_epochs=1",
    "search.trials_per_size=2",
    "search.num_final_seeds=2",
)
"""SizeResolver of `--quick`: the whole path in minutes, its numbers say little."""
