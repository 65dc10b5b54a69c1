"""What there is to know of a source before anything is trained: `recjax inspect`."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .data.dataset import Dataset
from .drift import ALARM, drift
from .hit_rates import hit_rates


def show(dataset: Dataset, *, history: int = 50, console: Console | None = None) -> None:
    """Prints a data set's facts, the hit rate of every id field and the drift of every field.

    Hit rates are of test requests, given what training shows; drift is from training to test.
    """
    if history < 1:
        raise ValueError(f"--history must be >= 1, got {history}.")
    console = console or Console(width=None if Console().is_terminal else 120, highlight=False)
    console.print(dataset.name, style="bold", markup=False)
    for name, value in dataset.facts.items():
        console.print(f"  {name}: {value}", markup=False)
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
