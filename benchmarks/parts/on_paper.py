"""A search on a number of GPUs: seconds of every phase, and the demand on every resource."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from parts.at_size import GIGA, Assumed, Measured, Size, Task

DECODERS = 8
"""Threads with which krscale decodes images."""


class Phase(NamedTuple):
    """A piece of work, which follows the previous one.

    Attributes:
        wall: Its wall seconds.
        used: Seconds in which GPUs compute, summed over all GPUs.
    """

    wall: float
    used: float


class Demand(NamedTuple):
    """The demand on a resource.

    Attributes:
        asked: How much of it is needed.
        there: How much is available; 0 if it is not known.
        unit: Unit of both.
    """

    asked: float
    there: float
    unit: str


class Exchange(NamedTuple):
    """The seconds of one step that several GPUs share.

    Attributes:
        alone: Seconds of the whole step on one GPU, divided by the number of GPUs.
        compute: Seconds of each GPU for its own images.
        gradients: Seconds to sum them; only the part that the backward does not hide counts.
        norms: Seconds of the exchanges of batch norm, which nothing hides.
    """

    alone: float
    compute: float
    gradients: float
    norms: float

    @property
    def efficiency(self) -> float:
        """Speed of each GPU relative to its speed alone."""
        beyond = max(0.0, self.gradients - 2 / 3 * self.compute)
        return self.alone / (self.compute + beyond + self.norms)


@dataclass(frozen=True)
class OnPaper:
    """A search on a task with a number of GPUs.

    Attributes:
        task: What is searched.
        gpus: Number of GPUs, with one trial on each.
        num_trials: Trials of the tuning, without the final trainings.
        num_finals: Whole trainings with fresh seeds.
        assumed: What was not measured.
        measured: What was.
    """

    task: Task
    gpus: int
    num_trials: int
    num_finals: int
    assumed: Assumed
    measured: Measured

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return -(-self.gpus // self.assumed.gpus_per_node)

    def step_seconds(self, student: Size) -> tuple[float, str]:
        """Return the seconds of a step of KR with the store, and what bounds them."""
        each, bound = self.assumed.image_seconds(student, training=True)
        least = self.task.num_parts * self.measured.part_ms / 1e3
        plain, bound = max((each * self.task.batch, bound), (least, "kernels' starts"))
        return plain * self.measured.kr_over_plain, bound

    def rate(self, student: Size) -> float:
        """Return the images that one GPU trains on a second."""
        return self.task.batch / self.step_seconds(student)[0]

    def trial_seconds(self, student: Size) -> float:
        """Return the seconds of a whole training."""
        return self.task.num_train * self.task.num_epochs / self.rate(student)

    def phases(self) -> dict[str, Phase]:
        """Return every phase, in order."""
        task, assumed = self.task, self.assumed
        forward, _ = assumed.image_seconds(task.teacher, training=False)
        step, _ = assumed.image_seconds(task.teacher, training=True)
        training = step * task.num_train * task.teacher_epochs
        probing, storing = forward * task.num_train, forward * task.num_train * task.num_views
        writing = task.store_bytes(self.measured.bits) / GIGA / assumed.storage_gb_s
        whole = [self.trial_seconds(student) for student in task.students]
        short = [seconds * self.measured.epochs_share for seconds in whole]
        finals = [whole[number % len(whole)] for number in range(self.num_finals)]
        tuned = [short[number % len(short)] for number in range(self.num_trials)]
        return {
            "images decoded": Phase(task.num_train / (DECODERS * assumed.decoded_per_thread), 0.0),
            "teacher trained": Phase(training, training),
            "probes fitted": Phase(probing, probing),
            "stores written": Phase(max(storing / self.gpus, writing), storing),
            "data and stores read by all machines": Phase(self._filling(), 0.0),
            "trials": Phase(_wall(tuned, self.gpus), sum(tuned)),
            "final trainings": Phase(_wall(finals, self.gpus), sum(finals)),
        }

    def _filling(self) -> float:
        """Return the seconds in which all machines load data and stores into their memory."""
        kept = (self.task.data_bytes + self.task.store_bytes(self.measured.bits)) / GIGA
        together = self.nodes * kept / self.assumed.storage_gb_s
        return max(together, kept / self.assumed.node_link_gb_s)

    def with_the_teacher_in_every_step(self) -> float:
        """Return the GPU-seconds of the trials if each ran the teacher itself."""
        forward, _ = self.assumed.image_seconds(self.task.teacher, training=False)
        images = self.task.num_train * self.task.num_epochs * self.measured.epochs_share
        return self.phases()["trials"].used + forward * images * self.num_trials

    def demands(self) -> dict[str, Demand]:
        """Return the demand of the trials on every resource while they run."""
        task, assumed, measured = self.task, self.assumed, self.measured
        rates = [self.rate(student) for student in task.students]
        mean = len(rates) / sum(1 / rate for rate in rates)  # slow trials occupy a GPU for longer
        row = 3.0 * task.side**2 + task.row_bytes(measured.bits)
        kept = (task.data_bytes + task.store_bytes(measured.bits)) / GIGA
        trials = self.num_trials / self.phases()["trials"].wall
        # Weights and momentum in fp32.
        state = 8.0 * sum(student.parameters for student in task.students) / len(rates) / GIGA
        each_node = assumed.storage_gb_s / self.nodes
        return {
            "pixels gathered for the fastest student, by one thread": Demand(
                max(rates) * 3 * task.side**2 / GIGA, measured.gather_gb_s, "GB/s"
            ),
            "data and stores, in the memory of a machine": Demand(
                kept, assumed.node_memory_gb, "GB"
            ),
            "read by a machine whose memory has no room for them": Demand(
                mean * row * assumed.gpus_per_node / GIGA,
                min(assumed.node_link_gb_s, each_node),
                "GB/s",
            ),
            "checkpoints of all trials": Demand(
                self.gpus * state / task.checkpoint_seconds, assumed.storage_gb_s, "GB/s"
            ),
            "the driver's CPU": Demand(trials * measured.driver_ms / 1e3, 1.0, "cores"),
            "journal": Demand(
                trials * measured.journal_bytes / 1e3, 1e6 * assumed.storage_gb_s, "kB/s"
            ),
            "epochs reported to MLflow": Demand(
                trials * task.num_epochs * measured.epochs_share, 0.0, "a second"
            ),
        }

    def exchange(self, network: Size, workers: int) -> Exchange:
        """Return a step of one training that `workers` GPUs share, computed in one part."""
        task, assumed = self.task, self.assumed
        inside = workers <= assumed.gpus_per_node
        link = assumed.gpu_link_gb_s if inside else assumed.node_link_gb_s
        each, _ = assumed.image_seconds(network, training=True)
        least, whole = self.measured.part_ms / 1e3, each * task.batch
        gradients = 2 * (workers - 1) / workers * 4 * network.parameters / (link * GIGA)
        norms = 2 * network.norms * assumed.exchange_us[0 if inside else 1] / 1e6
        compute = max(whole / workers, least)
        return Exchange(max(whole, least) / workers, compute, gradients, norms)


def _wall(lengths: Sequence[float], places: int) -> float:
    """Return the end of trainings that are started in order, each on the first free GPU."""
    free = [0.0] * min(places, max(1, len(lengths)))
    for length in lengths:
        heapq.heappush(free, heapq.heappop(free) + length)
    return max(free)
