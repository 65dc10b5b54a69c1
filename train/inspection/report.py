"""Report on a source before anything is trained: `recjax inspect`."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..data.dataset import Dataset
from .drift import ALARM, drift
from .hit_rates import hit_rates
from .suspects import suspects


def say(dataset: Dataset) -> None:
    """Prints on standard error what a data set holds and how its file was read, before training."""
    terminal = Console(stderr=True).is_terminal
    _show_facts(dataset, Console(stderr=True, width=None if terminal else 120, highlight=False))


def say_notes(dataset: Dataset) -> None:
    """Prints on standard error what people should know of how a file was read."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for note in dataset.notes:
        console.print(f"note: {note}", markup=False)


def _show_facts(dataset: Dataset, console: Console) -> None:
    """Columns with role, kind, unit and source of the guess; counts, notes and warnings."""
    console.print(dataset.name, style="bold", markup=False)
    for name, value in dataset.facts.items():
        console.print(f"  {name}: {value}", markup=False)
    if dataset.columns is not None and any(column.why for column in dataset.columns):
        table = Table("column", "role", "per", "kind", "unit", "why", title="Columns")
        for column in dataset.columns:
            read = column.role != "ignored"
            id_like = read and column.kind in ("id", "bag") and column.role != "time"
            kind = f"{column.kind} ({column.value})" if id_like else column.kind
            table.add_row(
                escape(column.name),
                column.role,
                column.per or "",
                kind if read and column.role != "time" else "",
                column.unit or "",
                escape(column.why),
            )
        console.print(table)
    for note in dataset.notes:
        console.print(f"  note: {note}", markup=False)
    for warning in suspects(dataset):
        console.print(f"  warning: {warning}", markup=False)


def show(dataset: Dataset, *, history: int = 50, console: Console | None = None) -> None:
    """Prints a data set's facts, the hit rate of every id field and the drift of every field.

    Hit rates are of test requests, given what training shows; drift is from training to test.
    """
    if history < 1:
        raise ValueError(f"--history must be >= 1, got {history}.")
    console = console or Console(width=None if Console().is_terminal else 120, highlight=False)
    _show_facts(dataset, console)
    for split in ("train", "validation", "test"):
        requests = getattr(dataset, split)
        console.print(f"  {split}: {len(requests)} requests, {requests.examples} candidates")

    table = Table("field", "values", "seen once", "occurrences", "hit rate", "", title="Hit rates")
    for rate in hit_rates(dataset, history=history):
        table.add_row(
            escape(f"{rate.role}.{rate.name}"),
            str(rate.values),
            f"{rate.only_once:.1%}",
            f"{rate.occurrences:g}",
            f"{rate.hit_rate:.1%}",
            "identifies samples: leave it out" if rate.identifies_samples else "",
        )
    console.print(table)

    table = Table("field", "PSI", "KS", "", title="Drift from training to test")
    for row in drift(dataset, dataset.train, dataset.test, history=history):
        table.add_row(
            escape(f"{row.role}.{row.name}"),
            f"{row.psi:.3f}",
            "" if row.ks is None else f"{row.ks:.3f}",
            f"moved (PSI > {ALARM})" if row.alarm else "",
        )
    console.print(table)
