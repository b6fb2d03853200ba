"""A trial that does nothing, to measure the search's own work."""

from __future__ import annotations

from typing import Any

from ray import tune


class NoopTrial(tune.Trainable):
    """Reports one epoch, without torch, data or training."""

    def setup(self, config: dict[str, Any], **parameters: Any) -> None:
        """Accept the arguments of krscale's trial."""
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial in the same process."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Report an accuracy that depends on the settings, as samplers expect."""
        metrics = {"val/accuracy": self.accuracy, "val/loss": 1 - self.accuracy, "epoch": 1.0}
        return {"history": [metrics], "val/accuracy": self.accuracy, tune.result.DONE: True}

    def _begin(self, config: dict[str, Any]) -> None:
        self.accuracy = 1.0 - abs(float(config["values"]["train.learning_rate"]) - 0.1)
