"""Learning curves at any point of the space, predicted from those that were recorded.

A forest of extremely randomised trees per size (Geurts, Ernst and Wehenkel, 2006), as is usual for
benchmarks of searches (Eggensperger et al., AAAI 2015). It is noiseless, and has no information
from between the recorded points: it serves to compare ways to search, not students.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor

LOGARITHMIC = ("train.learning_rate", "distill.kr_weight", "distill.temperature")


class Surrogate:
    """The learning curve of every size as a function of the settings.

    Args:
        recorded: What `recording.read_recorded` returns.
        guessing: Accuracy of guessing among the classes, used for trainings that did not end
            because a loss became infinite.
    """

    def __init__(self, recorded: Mapping[str, Any], guessing: float = 0.05) -> None:
        rows = next(iter(recorded["sizes"].values()))
        self.fields = sorted(rows[0]["values"])
        self.num_epochs = max(len(row["curve"]) for row in rows)
        self.forests = {}
        self.seconds = {}
        for capacity, points in recorded["sizes"].items():
            inputs = [self._inputs(point["values"]) for point in points]
            curves = [point["curve"] or [guessing] * self.num_epochs for point in points]
            forest = ExtraTreesRegressor(n_estimators=40, min_samples_leaf=2, random_state=0)
            self.forests[capacity] = forest.fit(inputs, curves)
            whole = [p["cpu_seconds"] for p in points if len(p["curve"]) == self.num_epochs]
            self.seconds[capacity] = np.array(whole)

    def curve(self, capacity: str, values: Mapping[str, Any]) -> list[float]:
        """Return the predicted validation accuracy after each epoch."""
        found: list[float] = self.forests[capacity].predict([self._inputs(values)])[0].tolist()
        return found

    def agreement(self, recorded: Mapping[str, Any]) -> dict[str, float]:
        """Return the rank correlation of predicted and true ends of held-out curves, by size."""
        from scipy.stats import spearmanr
        from sklearn.base import clone
        from sklearn.model_selection import cross_val_predict

        found = {}
        for capacity, points in recorded["sizes"].items():
            whole = [p for p in points if p["curve"]]
            inputs = [self._inputs(point["values"]) for point in whole]
            ends = [point["curve"][-1] for point in whole]
            predicted = cross_val_predict(clone(self.forests[capacity]), inputs, ends, cv=5)
            found[capacity] = round(float(spearmanr(ends, predicted).statistic), 3)
        return found

    def _inputs(self, values: Mapping[str, Any]) -> list[float]:
        return [math.log(values[f]) if f in LOGARITHMIC else float(values[f]) for f in self.fields]
