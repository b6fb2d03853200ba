"""A trial that is shorter than the start of a worker; it records its worker's process id."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ray import tune

from krscale.config import Experiment
from krscale.setup.prepare import Prepared


class BriefTrial(tune.Trainable):
    """Reports an accuracy of 0.5 until two workers have run trials, and 1 from then on."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], experiment: Experiment, prepared: Prepared, **_: Any
    ) -> None:
        self.workers = Path(experiment.run_path) / "workers"
        self.workers.mkdir(exist_ok=True)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True

    def step(self) -> dict[str, Any]:
        (self.workers / str(os.getpid())).touch()
        time.sleep(0.1)
        accuracy = 1.0 if len(list(self.workers.iterdir())) > 1 else 0.5
        metrics = {"val/accuracy": accuracy, "val/loss": 1.0, "epoch": 1.0}
        return {"history": [metrics], "val/accuracy": accuracy, tune.result.DONE: True}
