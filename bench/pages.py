"""`python -m recjax.bench.pages`: renders the figures of all pages from the committed result files.

A page is `README.md` or a file of Markdown below `docs/`. Two marks stand in it:

    <!-- results: SUITE | METRIC; METRIC -->                      a table, up to <!-- end -->
    <!-- results: SUITE: CASE; CASE | METRIC -->                  a table of these cases
    <!-- value: SUITE; CASE; METHOD; METRIC -->0.5<!-- end -->    one figure within a line

A suite that takes hours may have been run in parts (`--only`), each into a folder of its own; of
each case the newest run counts. A table shows the cases that have its first metric, so that one
suite may fill several.
"""

from pathlib import Path
import re
from typing import NamedTuple

from . import results

ROOT = Path(__file__).resolve().parents[1]
_TABLE = re.compile(
    r"(<!-- results: (\w+)(?:: ([^|>]+))? \| ([^>]+) -->\n).*?(<!-- end -->)", re.DOTALL
)
_VALUE = re.compile(r"(<!-- value: ([^>]+) -->)[^<\n]*(<!-- end -->)")


class _Case(NamedTuple):
    """The newest run of a case: when and how it was made, and its rows."""

    date: str
    note: str
    rows: list[results.Row]


def pages() -> list[Path]:
    """Every page that is rendered."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def render(text: str, folder: Path = ROOT / "bench" / "results") -> str:
    """`text` with every figure made anew from `results.json` in or below `folder/SUITE`.

    Raises:
      FileNotFoundError: a suite without results.
      ValueError: a case, or a single figure, that no result file has.
    """

    def table(match: re.Match[str]) -> str:
        opening, suite, wanted, metrics, closing = match.groups()
        columns = [metric.strip() for metric in metrics.split(";")]
        only = [case.strip() for case in wanted.split(";")] if wanted else None
        cases = _newest(folder, suite)
        for name in only or ():
            _require(name in cases, f"case {name!r} of suite {suite!r}")
        shown = [
            case
            for name, case in cases.items()
            if (only is None or name in only) and any(row.metric == columns[0] for row in case.rows)
        ]
        body = results.markdown([row for case in shown for row in case.rows], columns)
        notes = dict.fromkeys(case.note for case in shown)
        return f"{opening}{body}\n\n{'; '.join(notes)}\n{closing}"

    def value(match: re.Match[str]) -> str:
        opening, address, closing = match.groups()
        suite, name, method, metric = (part.strip() for part in address.split(";"))
        case = _newest(folder, suite).get(name)
        found = (
            [row for row in case.rows if (row.method, row.metric) == (method, metric)]
            if case
            else []
        )
        _require(bool(found), f"{metric!r} of {method!r} in case {name!r} of suite {suite!r}")
        return f"{opening}{results.number(found[0].value)}{closing}"

    return _VALUE.sub(value, _TABLE.sub(table, text))


def _newest(folder: Path, suite: str) -> dict[str, _Case]:
    """The newest run of every case of a suite, in the order of the files."""
    paths = sorted((folder / suite).rglob("results.json"), key=lambda p: (len(p.parts), p))
    if not paths:
        raise FileNotFoundError(f"There is no results.json of suite {suite!r} below {folder}.")
    cases: dict[str, _Case] = {}
    for path in paths:
        head, rows = results.read(path)
        date = head["date"]
        where = f"{head['device']}, {date[:10]}, jax {head['versions']['jax']}"
        for name in dict.fromkeys(row.case for row in rows):
            if name not in cases or date >= cases[name].date:
                of_case = [row for row in rows if row.case == name]
                cases[name] = _Case(date, f"`{head['command']}` on {where}", of_case)
    return cases


def _require(there: bool, what: str) -> None:
    if not there:
        raise ValueError(f"There is no result of {what}.")


if __name__ == "__main__":
    for page in pages():
        page.write_text(render(page.read_text()))
