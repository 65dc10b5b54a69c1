"""Suites by name. `recjax bench SUITE` and `python -m recjax.bench SUITE` both come here."""

from collections.abc import Callable
from pathlib import Path

from . import accuracy, pipeline, results

SUITES: dict[str, tuple[Callable[[], list[results.Row]], list[str]]] = {
    "accuracy": (accuracy.run, ["auc", "gauc", "logloss", "examples/s"]),
    "pipeline": (
        pipeline.run,
        [
            "examples/s",
            "ms per step",
            "time against the smallest",
            "tables and state",
            "peak beyond them",
        ],
    ),
}


def run(suite: str, out: Path | str) -> Path:
    """Runs a suite, writes `out/results.json`, prints its table.

    Raises:
      ValueError: an unknown suite.
    """
    if suite not in SUITES:
        raise ValueError(f"Unknown suite {suite!r}; choose from {', '.join(SUITES)}.")
    measure, columns = SUITES[suite]
    rows = measure()
    path = results.write(out, suite, f"recjax bench {suite}", 0, rows)
    print(results.markdown(rows, columns))
    print(f"\nwritten to {path}")
    return path
