"""A progress bar where somebody watches, plain lines where not."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as _Bar


class Progress:
    """Counts steps on standard error. `quiet` prints nothing at all."""

    def __init__(self, title: str, total: int, *, quiet: bool = False):
        console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._console, self._title = console, title
        self._bar = _Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total)

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

    def say(self, what: str) -> None:
        """A line on work other than steps."""
        self._bar.update(self._task, description=f"{self._title}: {what}")

    def print(self, line: str) -> None:
        """A line that stays."""
        self._console.print(f"{self._title}: {line}", markup=False)
