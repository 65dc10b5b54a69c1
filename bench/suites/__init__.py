"""Suites by name. `recjax bench SUITE` and `python -m recjax.bench SUITE` both come here."""

import importlib
import inspect
from pathlib import Path

from ...train import run as run_folder
from .. import results

# Modules of this package, imported when they are asked for: some need more than others. Each has
# `run(...) -> rows` and `METRICS`, the columns of its table, and may have `draw(rows, path)`, which
# leaves no picture if nothing is to be seen.
SUITES = (
    "accuracy",
    "worlds",
    "pipeline",
    "training",
    "kernels",
    "last",
    "fields",
    "search",
    "serving",
    "gpu",
)


def run(
    suite: str, out: Path | str, *, only: list[str] | None = None, seeds: int | None = None
) -> Path | None:
    """Runs a suite, writes `out/results.json` and its picture, prints its table.

    Where nothing could be measured, the suite has said why; then there is no file, and none that
    was there is touched.

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
    module = importlib.import_module(f".{suite}", __package__)
    options = {"only": only, "seeds": seeds}
    options = {name: value for name, value in options.items() if value is not None}
    refused = options.keys() - inspect.signature(module.run).parameters.keys()
    if refused:
        raise ValueError(f"Suite {suite!r} takes no --{' or --'.join(sorted(refused))}.")
    run_folder.require_writable(Path(out))
    rows = module.run(**options)
    if not rows:
        print("nothing was measured, and nothing is written")
        return None
    words = [f"recjax bench {suite}", *(f'--only "{case}"' for case in only or [])]
    words += [f"--seeds {seeds}"] if seeds is not None else []
    path = results.write(out, suite, " ".join(words), 0, rows)
    print(results.markdown(rows, module.METRICS))
    print(f"\nwritten to {path}")
    if hasattr(module, "draw"):
        picture = path.with_name(f"{suite}.png")
        picture.unlink(missing_ok=True)
        module.draw(rows, picture)
        if picture.exists():
            print(f"drawn in {picture}")
    return path
