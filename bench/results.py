"""Result files: what every suite writes, and the tables that are made of them.

    {"suite", "device", "versions", "seed", "date", "command",
     "rows": [{"case", "method", "metric", "value", "unit", "low", "high"}]}

`low` and `high` are the spread over repeats or seeds. Every table and plot is rendered from such
a file; no number is typed by hand.
"""

from collections.abc import Iterable
import dataclasses
import json
from pathlib import Path
import statistics

from ..train import run


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure: the median of its repeats or seeds, and their spread."""

    case: str
    method: str
    metric: str
    value: float
    unit: str
    low: float
    high: float

    @classmethod
    def of(
        cls, case: str, method: str, metric: str, values: Iterable[float], unit: str = ""
    ) -> "Row":
        """The median, minimum and maximum of several values."""
        values = [float(value) for value in values]
        return cls(case, method, metric, statistics.median(values), unit, min(values), max(values))


def write(folder: Path | str, suite: str, command: str, seed: int, rows: list[Row]) -> Path:
    """Writes `results.json` (aside, then renamed) and returns its path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    run.write_json(
        path,
        {
            "suite": suite,
            "device": run.device(),
            "versions": run.versions(),
            "seed": seed,
            "date": run.now(),
            "command": command,
            "rows": [dataclasses.asdict(row) for row in rows],
        },
    )
    return path


def read(path: Path | str) -> tuple[dict, list[Row]]:
    """The head of a result file and its rows."""
    content = json.loads(Path(path).read_text())
    rows = [Row(**row) for row in content.pop("rows")]
    return content, rows


def markdown(rows: list[Row], metrics: list[str]) -> str:
    """A table with one line per (case, method) and one column per metric; spreads in brackets."""
    headings = [_heading(metric, rows) for metric in metrics]
    lines = [
        "| case | method | " + " | ".join(headings) + " |",
        "|" + "---|" * (2 + len(metrics)),
    ]
    cells = {(row.case, row.method, row.metric): row for row in rows}
    for case, method in dict.fromkeys((row.case, row.method) for row in rows):
        shown = [_cell(cells.get((case, method, metric))) for metric in metrics]
        if any(shown):
            lines.append(f"| {case} | {method} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _heading(metric: str, rows: list[Row]) -> str:
    unit = next((row.unit for row in rows if row.metric == metric), "")
    # "examples/s" and "ms per step" say theirs already.
    return metric if unit.removeprefix("1") in metric else f"{metric} ({unit})"


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row.low == row.high:
        return number(row.value)
    return f"{number(row.value)} ({number(row.low)} to {number(row.high)})"


def number(value: float) -> str:
    """Four decimals, fewer where the figure is large."""
    digits = next((d for least, d in ((1000, 0), (100, 1), (10, 2)) if abs(value) >= least), 4)
    return f"{value:,.{digits}f}"
