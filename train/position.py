"""Where a run is, for its checkpoints."""

import dataclasses
from typing import Any


@dataclasses.dataclass
class Position:
    """Position of a run. Travels in every checkpoint's note, as JSON.

    Attributes:
      epoch, index: the next batch. step: how many were trained on.
      loss_sum, examples, seconds, compile_seconds: of the training so far (the loss: this epoch).
      devices, requests: how many shared each batch, and its size, which `index` counts by; 0 in
        older notes.
      history: one entry per finished epoch.
    """

    epoch: int = 0
    index: int = 0
    step: int = 0
    loss_sum: float = 0.0
    examples: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    devices: int = 0
    requests: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def best_epoch(self) -> int:
        """Index of the best epoch by validation so far (the first of equals); -1 before any."""
        scores = [entry["score"] for entry in self.history]
        return scores.index(max(scores)) if scores else -1
