"""The search, where it is recorded, and the cluster it runs on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, ValidationInfo, field_validator

from krscale.config.fields import (
    Count,
    Positive,
    Progress,
    Section,
    SomeNames,
    StrictInt,
    Weight,
    refuse_repeats,
)
from krscale.errors import nearest
from krscale.metrics import VAL_ACCURACY, Direction, val_metrics

_SIZES = ("num_parameters", "flops", "latency_ms")


def objective_directions() -> dict[str, Direction]:
    """Return the possible objectives (metrics and sizes of students) and their directions."""
    metrics = {name: metric.direction for name, metric in val_metrics().items()}
    return {**metrics, **dict.fromkeys(_SIZES, "minimize")}


def method_identity(name: str) -> tuple[str, ...]:
    """Return a key that is equal for names of the same method: `kr+kd+dkd` is `kr+dkd+kd`."""
    base, *terms = name.split("+")
    return (base, *sorted(terms))


class SearchConfig(Section):
    """The search: one study for each method and size, all with the same budget."""

    space: str = "kr"
    """A search space shipped in `search_spaces/` (by name) or the path of a TOML file."""
    methods: SomeNames = ("plain", "kd", "kr")
    """Methods that are tuned and compared, each with the same number of trials; see
    `distill.method` for their names."""
    trials_per_size: Count = 8
    """Trials of every method at every size."""
    num_final_seeds: Count = 5
    """Number of new seeds with which each winner is trained again; only these students are
    tested."""
    sampler: Literal["tpe", "gp", "cmaes", "nsgaii", "random", "grid"] = "tpe"
    """Optuna sampler of every study; `tpe` draws every tenth trial at random, `grid` needs choices,
    whole numbers or steps, `cmaes` needs the extra `krscale[samplers]`."""
    early_stopping: Literal["asha", "median", "none"] = "asha"
    """Early stopping within a size; trials of different sizes are never compared. `median` stops
    trials that are worse than the median of the finished trials at the same epoch. Where hundreds
    of trials of a few epochs search for the last half point of accuracy, `none` finds it sooner
    (docs/benchmarks.md)."""
    objectives: SomeNames = (VAL_ACCURACY,)
    """What a study optimises: first `val/accuracy` (more is better), then any of `num_parameters`,
    `flops` and `latency_ms` (less is better), which vary where the space varies `student.*`, or
    another metric such as `val/loss`. With several objectives, every study searches for the front
    of trials that no other trial beats in all of them; the trial with the best validation accuracy
    is trained again. Two or more objectives need `early_stopping = "none"`."""
    transfer: StrictBool = False
    """Try the best settings of a method's next smaller and next larger size early in a study. With
    8 trials per size, this reduced accuracy where it was measured (docs/benchmarks.md)."""
    max_wall_seconds: Weight = 0.0
    """No trial is started once the search has taken this long, over all starts of the run; 0 is no
    limit. In the current start, the time counts from the opening of the studies on: the start of
    Ray and of its workers, trials, and final trainings between them. Of earlier starts, only the
    time counts in which trials ran that were not interrupted. Preparing data, teacher and stores
    never counts. Afterwards, the winners are still trained again with new seeds."""
    max_epochs: Annotated[int, Field(strict=True, ge=0)] = 0
    """No trial is started once all trials together have trained this many epochs; 0 is no limit.
    The final trainings of the winners do not count."""
    target_accuracy: Progress = 0.0
    """A study starts no more trials once one reaches this validation accuracy; 0 is no target."""
    grace_epochs: Count = 4
    """Epochs that every trial trains before it may be stopped."""
    reduction_factor: Annotated[int, Field(strict=True, ge=2)] = 2
    """ASHA keeps one trial in this many at each of its milestones."""
    max_parameters: Annotated[int, Field(strict=True, ge=0)] = 0
    """Students with more parameters are never trained; 0 is no limit. Larger sizes are left out,
    and so is every larger suggestion where a space varies the architecture."""
    max_flops: Annotated[int, Field(strict=True, ge=0)] = 0
    """The same for FLOPs per image, 2 per multiply-add."""
    max_latency_ms: Weight = 0.0
    """The same for milliseconds per image on one CPU thread of the machine that runs the search,
    measured on the untrained student."""
    max_failures: Count = 16
    """Number of failed trials after which the search gives up."""
    max_retries: Annotated[int, Field(strict=True, ge=0)] = 3
    """How often a trial whose worker or node was lost is continued from its last checkpoint."""
    stall_seconds: Literal["auto", "off"] | Weight = "auto"
    """A trial without progress for this long (no step, no validation batch) is ended and counts as
    failed; its worker is replaced. `auto` is 20 times the longest pause of any trial of the search
    so far, and at least 600; `off` or 0 waits for ever. Once `max_wall_seconds` have passed, it is
    always 20 times that pause, and at least 120. Several workers of `krscale distill` are ended in
    the same way, and start again from their last epoch, at most 3 times."""
    checkpoint_seconds: Weight = 5.0
    """Shortest time between two checkpoints of a running trial, which spends at most a fiftieth of
    its time on them; a killed trial loses the training since its last checkpoint."""
    cpus_per_trial: Positive = 1.0
    """CPU cores reserved for a trial, or for each of its workers where `train.num_workers` is 2 or
    more; each worker uses the same number of threads."""
    gpus_per_trial: Literal["auto"] | Weight = "auto"
    """GPUs reserved for a trial; with fractions, several trials share a GPU; 0 reserves none.
    `auto` measures the memory of the largest student and puts as many trials on a GPU as fit;
    without a GPU it is 0. Where `train.num_workers` is 2 or more, the number is for each worker and
    must be whole; `auto` is then 1, or 0 where the cluster has fewer GPUs than a trial has
    workers."""
    seed: StrictInt = 0
    """Seed of the samplers."""

    @field_validator("gpus_per_trial")
    @classmethod
    def _whole_beyond_one(cls, gpus: float | str) -> float | str:
        if isinstance(gpus, float) and gpus > 1.0 and not gpus.is_integer():
            raise ValueError("a trial takes a share of one GPU, or whole GPUs")
        return gpus

    @field_validator("methods")
    @classmethod
    def _methods_differ(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        for name in methods:
            _, *terms = name.split("+")
            if twice := next((term for term in terms if terms.count(term) > 1), None):
                raise ValueError(f"{name!r} names {twice!r} twice")
        refuse_repeats(methods, method_identity)
        return methods

    @field_validator("objectives")
    @classmethod
    def _objectives_go_together(
        cls, objectives: tuple[str, ...], info: ValidationInfo
    ) -> tuple[str, ...]:
        for name in objectives:
            if name not in (allowed := objective_directions()):
                guess = nearest(name, allowed)
                hint = f"; did you mean {guess!r}?" if guess else "."
                raise ValueError(f"no objective {name!r}{hint} Allowed: {', '.join(allowed)}")
        if objectives[0] != VAL_ACCURACY:
            raise ValueError(f"{VAL_ACCURACY!r} comes first")
        # `info.data` has the fields above this one, except those that were refused themselves.
        sampler, stopping = info.data.get("sampler"), info.data.get("early_stopping")
        if len(objectives) > 1 and sampler == "cmaes":
            raise ValueError(
                "search.sampler = 'cmaes' improves one objective; 'tpe', 'gp', 'nsgaii', 'random' "
                "and 'grid' take several"
            )
        if len(objectives) > 1 and stopping not in (None, "none"):
            raise ValueError(
                f"search.early_stopping = {stopping!r} stops trials by their accuracy alone, "
                f"also those that the other objectives want; set search.early_stopping = 'none'"
            )
        return objectives


class TrackingConfig(Section):
    """Where runs are recorded."""

    uri: str = ""
    """An MLflow tracking URI; empty uses a SQLite file beside the runs."""
    experiment: str = "krscale"
    """Name of the MLflow experiment."""
    enabled: StrictBool = True
    """Whether to record in MLflow; the run folder is complete without it."""
    system_metrics: StrictBool = False
    """Record the load of the machine on which the command was started (processors, memory, disk,
    network, GPUs) every 10 seconds; needs the extra `krscale[system]`."""


class ClusterConfig(Section):
    """The Ray cluster."""

    address: str = ""
    """`local` starts a private Ray; empty follows Ray's own rule: connect to `RAY_ADDRESS`, or else
    start one."""
    num_cpus: Annotated[int, Field(strict=True, ge=0)] = 0
    """Cores of a Ray that krscale starts; 0 lets Ray count them."""
    wait_seconds: Positive = 60.0
    """How long to wait for the requested workers before giving up."""
    cache_gb: Positive = 100.0
    """Where `storage_path` is a URI: how many gigabytes of data and stores a machine keeps in its
    own folder (`$KRSCALE_CACHE_PATH` or `~/.cache/krscale`). The least recently opened ones are
    removed first; those in use are kept."""
