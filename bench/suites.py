"""Suites by name. `recjax bench SUITE` and `python -m recjax.bench SUITE` both come here."""

from collections.abc import Callable
import inspect
from pathlib import Path

from ..train import run as run_folder
from . import accuracy, gpu, kernels, pipeline, results, training, worlds

SUITES: dict[str, tuple[Callable[..., list[results.Row]], list[str]]] = {
    "accuracy": (accuracy.run, accuracy.METRICS),
    "worlds": (worlds.run, worlds.METRICS),
    "pipeline": (pipeline.run, pipeline.METRICS),
    "training": (training.run, training.METRICS),
    "kernels": (kernels.run, kernels.METRICS),
    "gpu": (gpu.run, gpu.METRICS),
}

# Suites whose rows are better looked at.
PICTURES: dict[str, tuple[Callable[[list[results.Row], Path], None], str]] = {
    "kernels": (kernels.draw, "roofline.png"),
}


def run(
    suite: str, out: Path | str, *, only: list[str] | None = None, seeds: int | None = None
) -> Path:
    """Runs a suite, writes `out/results.json` and its picture, prints its table.

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
    options = {name: value for name, value in options.items() if value is not None}
    refused = options.keys() - inspect.signature(measure).parameters.keys()
    if refused:
        raise ValueError(f"Suite {suite!r} takes no --{' or --'.join(sorted(refused))}.")
    run_folder.require_writable(Path(out))
    rows = measure(**options)
    words = [f"recjax bench {suite}", *(f'--only "{case}"' for case in only or [])]
    words += [f"--seeds {seeds}"] if seeds is not None else []
    path = results.write(out, suite, " ".join(words), 0, rows)
    print(results.markdown(rows, columns))
    print(f"\nwritten to {path}")
    if suite in PICTURES:
        draw, name = PICTURES[suite]
        draw(rows, path.with_name(name))
        print(f"drawn in {path.with_name(name)}")
    return path
