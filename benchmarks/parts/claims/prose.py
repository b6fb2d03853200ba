"""What `docs/claims.md` says in words: the part that no run changes."""

from collections.abc import Sequence

from parts.claims.families import FEATURES, LOGITS, OPPONENTS


def _names(methods: Sequence[str]) -> str:
    return ", ".join(f"`{method}`" for method in methods)


HEAD = """\
# The four claims, measured

Written by `benchmarks/claims.py` from `benchmarks/results/claims.json`; do not edit. What is said
here holds for the tasks below and for our formulation of Knowledge Representing, no further.
"""

STATED = """\
## What the paper states

Liu et al., *Knowledge Representing*, CVPRW 2019 ([arXiv 1911.05329](https://arxiv.org/abs/1911.05329)),
state in their abstract that (C1) aggregating the teacher's knowledge to a more abstract level
alleviates the accumulation of residual in the deeper layers, (C2) a sparse recoding penalty avoids
over-regularisation and speeds convergence, (C3) the student gains even when it lacks capacity, and
(C4) the method combines with methods on posterior knowledge. No code and no task of theirs is at
hand; nothing here repeats a number of the paper.
"""

CHOSEN = """\
## What we chose

The formulas are ours ([knowledge-representing.md](knowledge-representing.md)), and so are the
measures and goals on this page. The goals were set before this benchmark existed. Opponents are
implemented from their papers and tuned in the ranges of `search_spaces/claims.toml`, KR's second
formulation in those of `search_spaces/claims_where.toml`; each may do better with more trials,
epochs or another schedule, and so may KR, which has the most settings to find with the same number
of trials.

"""

OPPONENTS_NOTE = (
    f"The opponents are {len(OPPONENTS)}: on the logits {_names(LOGITS)}; on features "
    f"{_names(FEATURES)}. What was not measured on a task is named there."
)

BEFORE = """\
**What came before this run.** In the first full run (commit 5e9f9a8: 2,048 images, 8 epochs; its
results are in the history of `benchmarks/results/claims.json`) KR was below the best opponent by
8.4 to 24.6 points at every size. Then the job was made longer, for all methods alike, and the
formulation of KR was changed in two places: its heads read a grid of cells, and its recoding
keeps the norm of the gap. Both were chosen by the validation accuracy of trainings on this task
([log](log.md)), so KR had an attention that its opponents' formulas had not. The seeds and the
test faces of this page had no part in that choice.
"""

HOW_TO_READ = """\
## How to read the tables

Differences are paired by seed: both students see the same images in the same order. Square brackets
hold the 95 % interval of the mean over the seeds (Student's t). Where every method was searched
more than once, curly brackets hold the 95 % interval over searches: its variance is that between
the winners of independent searches of one method, pooled over all methods of the size, so that luck
in the draw of settings is in it. A claim *holds* at a size when all its intervals are on the right
side, *does not hold* when all are on the other, and is *undecided* otherwise. Intervals do not
speak of other data or other teachers, and with so many of them a few are on one side by chance:
nothing was corrected for that.
"""

TRIED = """\
## What was tried and lost

What was tried in the formulation and lost is in the [log](log.md).
"""

CIFAR = """\
## CIFAR-100

The published pairs need CIFAR-100 on your disk and a GPU for hours; nobody has run them with this
repository yet. `data.path` is the folder with `train`, `test` and `meta` (the python archive,
unpacked) or with `train.bin` and `test.bin`:

```console
$ python -m krscale.tune jobs/cifar100_resnet.toml --set data.path=cifar-100-python
$ python -m krscale.tune jobs/cifar100_wide_resnet.toml --set data.path=cifar-100-python
```

| pair | parameters | teacher | plain | KD | DKD | KR (ours) |
| --- | --- | --- | --- | --- | --- | --- |
| ResNet32x4 to ResNet8x4 | 7.43M to 1.23M | 79.42 | 72.50 | 73.33 | 76.32 | |
| WRN-40-2 to WRN-16-2 | 2.25M to 0.70M | 75.61 | 73.26 | 74.92 | 76.23 | |

Accuracies in %, as published (Zhao et al., *Decoupled Knowledge Distillation*, CVPR 2022, with the
students' 240 epochs). Published methods were selected on the test split; krscale holds out a part
of the training split for validation, so that a student here learns from fewer images.
"""

REPEAT = """\
## Repeat it

```console
$ make claims ARGS="--tasks glyphs"    # hours on two cores; the same command continues
$ make claims ARGS="--data fashion_mnist=fashion-mnist cifar10=cifar-10-batches-bin"
$ make claims ARGS=--dry-run           # the plan, and what it costs on this machine
$ make claims ARGS=--quick             # the whole path in minutes; results in runs/claims-quick
$ make claims ARGS="--tasks glyphs --storage runs/claims-large \\
      --set data.glyphs.num_train=20000 --set search.trials_per_size=20"
```

The numbers belong to the commits named at each task and to the job as it was there; where the job
has changed since, the [log](log.md) says why, and a new run will say what that changes.

The tasks are [`jobs/claims.toml`](../jobs/claims.toml) (glyphs, embedded),
[`jobs/fashion_mnist.toml`](../jobs/fashion_mnist.toml) and
[`jobs/cifar10.toml`](../jobs/cifar10.toml), with fewer images and smaller networks than there; what
is tuned stands in [`search_spaces/claims.toml`](../search_spaces/claims.toml). krscale does not
download data: each job says where its files come from. Every search of a family of methods is a run
of krscale in `runs/claims`, with its own journal; `krscale report` shows each by itself. What a
finished search has found is kept in `benchmarks/results/claims` as well, a small file each: with
these committed, the command goes on on another machine, or without the folders of the runs.
"""
