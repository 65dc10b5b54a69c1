"""What a job of many parts says of its length: how many they are, and the time of the others."""

from collections.abc import Callable, Iterator
import sys
import time

from ..train.progress import in_words


class Countdown:
    """Says how many trainings there are and, after the first, how long the others will take."""

    def __init__(
        self, count: int, at_once: int = 1, *, clock: Callable[[], float] = time.monotonic
    ):
        """Of `count` trainings, `at_once` of which run at the same time."""
        self._rounds, self._clock, self._begun = -(-count // at_once), clock, clock()
        self._first = True
        _say(f"{count} trainings" + (f", {at_once} at a time" if at_once > 1 else ""))

    def done(self) -> None:
        """One training is over."""
        first, self._first = self._first, False
        if first and self._rounds > 1:
            took = self._clock() - self._begun
            left = in_words((self._rounds - 1) * took)
            _say(f"the first took {in_words(took)}: about {left} more if all take as long")


def each_seed(
    name: str, seeds: int, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[int]:
    """Seeds 0, 1, ... of a case, each announced; after the first, what the others will take."""
    begun = clock()
    for seed in range(seeds):
        print(f"{name}: seed {seed + 1} of {seeds}", flush=True)
        yield seed
        if seed == 0 and seeds > 1:
            took = clock() - begun
            left = in_words((seeds - 1) * took)
            _say(f"{name}: a seed takes {in_words(took)}, the others about {left}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
