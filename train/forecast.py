"""How long a training will take, said once, after its first steps."""

from collections.abc import Callable
import math
import time
from typing import Any

from .progress import Progress, in_words
from .settings import Settings

# The first steps compile; then as many are timed as fit into a few seconds.
_WARM, _FEWEST, _MOST, _SECONDS = 3, 5, 20, 3.0
# A scored candidate against one that is trained on: it has no gradient.
_SCORING = 1 / 3


class Forecast:
    """Times the first steps of a training and says what all of them will take.

    Without compiling and saving, and, in retrieval, without the search of validation and test.
    """

    def __init__(
        self,
        progress: Progress,
        steps: int,
        *,
        per_epoch: int = 0,
        epochs: int | float = 1,
        may_stop: bool = False,
        validation: int = 0,
        test: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Of what is still to be done.

        Args:
          progress: prints the line.
          steps: left.
          per_epoch: steps of an epoch; 0 where there are no epochs.
          epochs: left, at most; part of one counts as a part.
          may_stop: whether early stopping may end it sooner.
          validation, test: candidates that are scored, after each epoch and at the end.
          clock: in seconds.
        """
        self._progress, self._steps, self._clock = progress, steps, clock
        self._per_epoch, self._epochs, self._may_stop = per_epoch, epochs, may_stop
        self._validation, self._test = validation, test
        self._done, self._said, self._since = 0, False, (0.0, 0.0)

    @classmethod
    def of(
        cls,
        progress: Progress,
        settings: Settings,
        scored: tuple[int, ...],
        total: int,
        done: int,
        per_epoch: int,
    ) -> "Forecast":
        """That of a training with epochs, of which `done` of `total` steps are over.

        `scored` are the candidates of validation and test, or nothing.
        """
        epochs = (total - done) / per_epoch
        may_stop = 0 < settings.patience < epochs
        more: dict[str, Any] = {"per_epoch": per_epoch, "epochs": epochs, "may_stop": may_stop}
        more |= dict(zip(("validation", "test"), scored, strict=False))
        return cls(progress, total - done, **more)

    def step(self, ready: Callable[[], Any], *, candidates: int = 0, compiled: float = 0.0) -> None:
        """One more step is under way.

        Args:
          ready: waits until it is done.
          candidates: that it is trained on.
          compiled: seconds that went into compiling so far.
        """
        if self._said:
            return
        self._done += 1
        timed = self._done - _WARM
        if timed < 0:
            return
        if timed == 0:
            ready()
            self._since = self._clock(), compiled
            return
        started, compiled_before = self._since
        if timed < _FEWEST or (timed < _MOST and self._clock() - started < _SECONDS):
            return
        ready()
        each = (self._clock() - started - (compiled - compiled_before)) / timed
        self._said = True
        if self._steps > self._done:
            self._progress.print(self._line(max(each, 0.0), candidates))

    def _line(self, each: float, candidates: int) -> str:
        per_candidate = _SCORING * each / max(candidates, 1)
        validation = self._validation * per_candidate
        rounds = math.ceil(self._epochs)
        whole = self._steps * each + rounds * validation
        whole += validation + self._test * per_candidate  # once more, with the best epoch's
        said = f"{self._steps:,} steps"
        times = f"about {in_words(whole)} in all"
        if self._per_epoch and rounds > 1:
            said += f", {rounds} epochs at most"
            times = f"about {in_words(self._per_epoch * each + validation)} an epoch, {times}"
        if self._validation:
            times += ", scoring included"
        end = "; early stopping may end it sooner" if self._may_stop else ""
        return f"{said}: {times}{end}"
