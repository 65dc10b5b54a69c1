"""Suites by name. `recjax bench SUITE` and `python -m recjax.bench SUITE` both come here."""

from collections.abc import Callable
from pathlib import Path

from . import accuracy, pipeline, results, worlds

SUITES: dict[str, tuple[Callable[..., list[results.Row]], list[str]]] = {
    "accuracy": (accuracy.run, accuracy.METRICS),
    "worlds": (worlds.run, worlds.METRICS),
    "pipeline": (pipeline.run, pipeline.METRICS),
}


def run(
    suite: str, out: Path | str, *, only: list[str] | None = None, seeds: int | None = None
) -> Path:
    """Runs a suite, writes `out/results.json`, prints its table.

    Args:
      suite: one of `SUITES`.
      out: folder of the results.
      only: names of cases, for suites that have several; all by default.
      seeds: how many, for suites that train; the suite's own number by default.

    Raises:
      ValueError: an unknown suite or case, or an option that the suite does not have.
    """
    if suite not in SUITES:
        raise ValueError(f"Unknown suite {suite!r}; choose from {', '.join(SUITES)}.")
    measure, columns = SUITES[suite]
    options = {"only": only, "seeds": seeds}
    options = {name: value for name, value in options.items() if value}
    if options and suite not in ("accuracy", "worlds"):
        raise ValueError(f"Suite {suite!r} takes no --{' or --'.join(options)}.")
    rows = measure(**options)
    words = [f"recjax bench {suite}", *(f'--only "{case}"' for case in only or [])]
    words += [f"--seeds {seeds}"] if seeds else []
    path = results.write(out, suite, " ".join(words), 0, rows)
    print(results.markdown(rows, columns))
    print(f"\nwritten to {path}")
    return path
