"""A progress bar where somebody watches, a plain line now and then where not."""

from collections.abc import Callable
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as _Bar

# Where nobody watches, a line comes after so many seconds and such a share of the whole.
_SECONDS, _SHARE = 30.0, 0.1


class Progress:
    """Counts steps on standard error. `quiet` prints nothing at all.

    Where standard error is no terminal there is no bar: a line says how far it is and how long the
    rest will take, half a minute and a tenth of the steps after the one before at the earliest.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        done: int = 0,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Of `total` steps so many are `done`, by an earlier process."""
        console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._console, self._title = console, title
        self._plain = not quiet and not console.is_terminal
        self._bar = _Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, completed=done)
        self._clock, self._total, self._done = clock, total, done
        self._shown: tuple[float, int] | None = None

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, steps: int) -> None:
        """So many steps more are done."""
        self._bar.update(self._task, advance=steps, description=self._title)
        self._done += steps
        if self._plain and self._done < self._total:
            self._say_how_far()

    def say(self, what: str) -> None:
        """A line on work other than steps."""
        self._bar.update(self._task, description=f"{self._title}: {what}")

    def print(self, line: str) -> None:
        """A line that stays."""
        self._console.print(f"{self._title}: {line}", markup=False)

    def _say_how_far(self) -> None:
        if self._shown is None:  # The first step compiles: its time is no speed.
            self._shown = self._clock(), self._done
            return
        now, (then, before) = self._clock(), self._shown
        if now - then < _SECONDS or self._done - before < _SHARE * self._total:
            return
        self._shown = now, self._done
        rate = (self._done - before) / (now - then)
        left = in_words((self._total - self._done) / rate)
        self.print(f"{self._done:,} of {self._total:,}, {rate:,.3g} a second, about {left} left")


def in_words(seconds: float) -> str:
    """A duration as one says it: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"
