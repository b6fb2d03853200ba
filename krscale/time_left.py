"""An estimate of the remaining time of a search, from its trainings so far.

Trainings differ: a large student takes longer than a small one, early stopping ends some before
their last epoch, and the final trainings are run to the end. The seconds of an epoch are therefore
measured for each method and size, and the remaining trainings are added up. The start of a worker
does not count: it occurs once, and would multiply the estimate for most searches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Study = tuple[str, str]
"""The method and the capacity, e.g. `("kr", "1/16")`."""

ENOUGH = 0.05
"""Share of the work after which an estimate is given. The share is an estimate, too: if early
stopping ends most trials, a tenth of the work appears as less."""

_SAME_REPORT = 0.05
"""Seconds; epochs that arrive closer together come in the same report of a worker."""
_EXPECTED_WEIGHT = 4.0
"""Weight of `Workload.expected_share`, in trials. The first trials alone would mislead, as early
stopping has nothing to compare them with yet."""
_OWN_WEIGHT = 2.0
"""Weight of the study's rate in the pace of a running trial, in epochs."""
_COST_POWER = 0.5
"""For a size without measurements, seconds are assumed to grow with this power of its FLOPs: the
exponent would be 0 if all time were overhead, and 1 if none were."""


@dataclass(frozen=True)
class Workload:
    """The trainings of every study.

    Attributes:
        num_finals: Number of final trainings of the winner with fresh seeds, which come last and
            have all epochs.
        num_epochs: Epochs of a whole training; 0 if unknown.
        expected_share: Expected mean share of their epochs that the other trainings get; less than
            1 with early stopping.
    """

    num_finals: int = 0
    num_epochs: int = 0
    expected_share: float = 1.0


@dataclass
class _Trial:
    """A running trial: its start, and clock and epoch of its first and last report."""

    final: bool
    started: float
    on_new_worker: bool
    first: tuple[float, float] | None = None
    last: tuple[float, float] | None = None

    @property
    def epochs(self) -> float:
        """Number of epochs that are known to have ended."""
        return self.last[1] if self.last else 0.0

    @property
    def pace(self) -> tuple[float, float]:
        """Seconds between the first and the last report, and the number of epochs between them."""
        if self.first is None or self.last is None:
            return 0.0, 0.0
        return self.last[0] - self.first[0], self.last[1] - self.first[1]


class _Studied:
    """The progress of one study."""

    def __init__(self, planned: int) -> None:
        self.planned, self.done, self.finals_done, self.finals_begun = planned, 0, 0, False
        self.running: dict[str, list[_Trial]] = {}
        self.epochs = 0.0
        """Epochs of trials that have ended."""
        self.between = [0.0, 0.0]
        """Seconds between reports, and the number of epochs between them."""
        self.whole = [0.0, 0.0, 0.0]
        """Seconds, epochs and number of the trials on workers that had run a trial before."""

    @property
    def trials(self) -> list[_Trial]:
        """The running trials."""
        return [trial for trials in self.running.values() for trial in trials]

    def rate(self) -> float | None:
        """Return the seconds of an epoch; None without measurements."""
        paces = [self.between, *(trial.pace for trial in self.trials)]
        epochs = math.fsum(epochs for _, epochs in paces)
        if epochs > 0:
            return math.fsum(seconds for seconds, _ in paces) / epochs
        seconds, epochs, _ = self.whole
        return seconds / epochs if epochs > 0 else None


class TimeLeft:
    """Records the durations of trials, and estimates the remaining time from them.

    Args:
        planned: Study -> number of its trainings, finals included.
        workload: The trainings of every study.
        costs: Capacity -> FLOPs of its student, if known.
    """

    def __init__(
        self,
        planned: Mapping[Study, int],
        workload: Workload,
        costs: Mapping[str, float] | None = None,
    ) -> None:
        self.workload, self.costs = workload, costs or {}
        self._studies = {study: _Studied(count) for study, count in planned.items()}
        self._most_running = 0
        self._shares = [0.0, 0.0]

    def restored(self, study: Study, *, final: bool, epochs: float | None) -> None:
        """Count a trial of an earlier start; only its number of epochs is used."""
        self._count(self._studies[study], final=final)
        if epochs is not None and not final:
            self._see_share(epochs)

    def started(self, study: Study, name: str, now: float, *, final: bool) -> None:
        """Record the start of a trial; if more run than before, it has to start a new worker."""
        found = self._studies[study]
        num_running = 1 + sum(len(each.trials) for each in self._studies.values())
        trial = _Trial(final, now, on_new_worker=num_running > self._most_running)
        self._most_running = max(num_running, self._most_running)
        found.running.setdefault(name, []).append(trial)
        found.finals_begun |= final

    def reported(self, study: Study, name: str, epoch: float, now: float) -> None:
        """Record that a trial has ended an epoch; reports of several may arrive together."""
        trials = self._studies[study].running.get(name)
        if not trials or not self.workload.num_epochs:
            return
        trial = trials[0]
        if trial.first is None and trial.last and now - trial.last[0] >= _SAME_REPORT:
            # Not measured from its start: before the first report its worker may have been
            # starting, and a resumed trial reports its earlier epochs immediately.
            trial.first = trial.last
        trial.last = (now, epoch)

    def ended(self, study: Study, name: str, now: float, *, counts: bool) -> None:
        """Record the end of a trial; one that does not count will be run again."""
        found = self._studies[study]
        if not (trials := found.running.get(name)):
            return
        trial = trials.pop(0)
        if not trials:
            del found.running[name]
        found.between = [a + b for a, b in zip(found.between, trial.pace, strict=True)]
        if not counts:
            return
        epochs = trial.epochs if self.workload.num_epochs else 1.0
        found.epochs += epochs
        if not trial.on_new_worker:
            spent = (now - trial.started, epochs, 1.0)
            found.whole = [a + b for a, b in zip(found.whole, spent, strict=True)]
        self._count(found, final=trial.final)
        if not trial.final:
            self._see_share(epochs)

    def seconds(self, now: float, num_workers: int) -> float | None:
        """Return the remaining seconds; None before enough is done, and if nothing remains.

        Args:
            now: The current time of the clock.
            num_workers: Number of trials that run at once; 0 uses the maximum so far.
        """
        total = self.worker_seconds(now)
        if total is None:
            return None
        rates = self._rates()
        # With many workers, the longest study decides: its finals must wait for its other trials.
        longest = max(self._longest_chain(study, now, rates) for study in self._studies)
        return max(total / max(1, num_workers or self._most_running), longest)

    def worker_seconds(self, now: float) -> float | None:
        """Return the remaining seconds of a single worker; None as in `seconds`."""
        rates = self._rates()
        if not rates or not any(each.done < each.planned for each in self._studies.values()):
            return None
        left = math.fsum(math.fsum(self._left(study, now, rates)) for study in self._studies)
        done = math.fsum(
            (each.epochs + sum(trial.epochs for trial in each.trials)) * rates[study]
            for study, each in self._studies.items()
        )
        return left if done >= ENOUGH * (done + left) else None

    @property
    def _num_epochs(self) -> float:
        return float(self.workload.num_epochs or 1)

    def _count(self, found: _Studied, *, final: bool) -> None:
        found.done += 1
        found.finals_done += final

    def _see_share(self, epochs: float) -> None:
        self._shares[0] += min(1.0, epochs / self._num_epochs)
        self._shares[1] += 1

    def _share(self) -> float:
        """Return the expected share of its epochs that a trial gets, if it is not a final."""
        expected = self.workload.expected_share
        if expected >= 1.0 or not self.workload.num_epochs:
            return 1.0
        total, count = self._shares
        for each in self._studies.values():
            for trial in each.trials:  # otherwise trials that end early would be over-represented
                if not trial.final:
                    total += max(expected, trial.epochs / self._num_epochs)
                    count += 1
        return (total + _EXPECTED_WEIGHT * expected) / (count + _EXPECTED_WEIGHT)

    def _rates(self) -> dict[Study, float]:
        """Return the seconds of an epoch for every study; empty without any measurement."""
        seen = {study: rate for study, each in self._studies.items() if (rate := each.rate())}
        return {
            study: seen.get(study) or self._guess(study, seen) for study in self._studies if seen
        }

    def _guess(self, study: Study, seen: Mapping[Study, float]) -> float:
        """Return the estimated seconds of an epoch of a study, from those of the nearest size."""

        def distance(other: Study) -> float:
            pair = self.costs.get(study[1], 0.0), self.costs.get(other[1], 0.0)
            return math.log(pair[0] / pair[1]) if min(pair) > 0 else 0.0

        nearest = min(abs(distance(other)) for other in seen)
        return _mean(
            rate * math.exp(_COST_POWER * distance(other))
            for other, rate in seen.items()
            if abs(distance(other)) == nearest
        )

    def _overhead(self, rates: Mapping[Study, float]) -> float:
        """Return the seconds of a trial besides its epochs, on a worker that is running already."""
        seconds, trials = 0.0, 0.0
        for study, each in self._studies.items():
            spent, epochs, count = each.whole
            seconds, trials = seconds + spent - epochs * rates[study], trials + count
        return max(0.0, seconds / trials) if trials else 0.0

    def _left(self, study: Study, now: float, rates: Mapping[Study, float]) -> list[float]:
        """Return the remaining seconds of each training of a study."""
        each, rate, overhead = self._studies[study], rates[study], self._overhead(rates)
        share = self._share()
        finals = max(0, self.workload.num_finals - each.finals_done)
        tuned = 0 if each.finals_begun else max(0, each.planned - each.done - finals)
        left = []
        for trial in each.trials:
            if trial.final:
                finals -= 1
            else:
                tuned -= 1
            since = now - (trial.last[0] if trial.last else trial.started)
            if trial.last is None and trial.on_new_worker:
                since = 0.0  # its worker may still be starting
            reached = trial.epochs / self._num_epochs
            # Halfway to its last epoch, once it has exceeded the expected share.
            until = 1.0 if trial.final else max(share, (1.0 + reached) / 2)
            seconds, epochs = trial.pace
            own = (seconds + _OWN_WEIGHT * rate) / (epochs + _OWN_WEIGHT)
            left.append(max(0.0, (until - reached) * self._num_epochs * own - since))
        left += [share * self._num_epochs * rate + overhead] * max(0, tuned)
        return left + [self._num_epochs * rate + overhead] * max(0, finals)

    def _longest_chain(self, study: Study, now: float, rates: Mapping[Study, float]) -> float:
        """Return the minimum seconds that a study needs with any number of workers."""
        each = self._studies[study]
        left = self._left(study, now, rates)
        chain = max(left, default=0.0)
        waits = left and self.workload.num_finals and not each.finals_begun
        # Its last training is a final, which waits for the longest of the others.
        return chain + (max(left[: -self.workload.num_finals], default=0.0) if waits else 0.0)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)
