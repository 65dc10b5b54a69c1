"""`python -m recjax.bench.pages`: renders the figures of all pages from the committed result files.

A page is `README.md` or a file of Markdown below `docs/`. Three marks stand in it:

    <!-- results: SUITE | METRIC; METRIC -->                      a table, up to <!-- end -->
    <!-- results: SUITE: CASE; CASE | METRIC -->                  a table of these cases
    <!-- value: SUITE; CASE; METHOD; METRIC -->0.5<!-- end -->    one figure within a line
    <!-- holds: SUITE; CASE; METRIC; METHOD > METHOD ~ 0 -->      what the text claims

A suite that takes hours may have been run in parts (`--only`), each into a folder of its own; of
each case the newest run counts. A table shows the cases that have its first metric, so that one
suite may fill several. A claim compares methods or numbers by their spreads over seeds or repeats:
`>` is larger beyond them, `~` says that they overlap. A claim that the figures do not bear out is
an error: the text has to change with them.
"""

from collections.abc import Callable
import functools
from pathlib import Path
import re
from typing import NamedTuple

from . import results

ROOT = Path(__file__).resolve().parents[1]
_TABLE = re.compile(
    r"(<!-- results: (\w+)(?:: ([^|>]+))? \| ([^>]+) -->\n).*?(<!-- end -->)", re.DOTALL
)
_CLAIM = re.compile(r"<!-- holds: (.+) -->")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
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
      ValueError: a case, or a single figure, that no result file has, or a claim that is not so.
    """

    newest = functools.cache(functools.partial(_newest, folder))

    def table(match: re.Match[str]) -> str:
        opening, suite, wanted, metrics, closing = match.groups()
        columns = [metric.strip() for metric in metrics.split(";")]
        only = [case.strip() for case in wanted.split(";")] if wanted else None
        cases = newest(suite)
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
        suite, case, method, metric = (part.strip() for part in address.split(";"))
        return f"{opening}{results.number(find(suite, case, method, metric).value)}{closing}"

    def find(suite: str, case: str, method: str, metric: str) -> results.Row:
        rows = newest(suite)[case].rows if case in newest(suite) else []
        found = [row for row in rows if (row.method, row.metric) == (method, metric)]
        _require(bool(found), f"{metric!r} of {method!r} in case {case!r} of suite {suite!r}")
        return found[0]

    for claim in _CLAIM.findall(text):
        _check(claim, find)
    return _VALUE.sub(value, _TABLE.sub(table, text))


def _check(claim: str, find: Callable[[str, str, str, str], results.Row]) -> None:
    """Raises ValueError unless every pair of neighbours in a claim is as it says."""
    suite, case, metric, chain = (part.strip() for part in claim.split(";"))
    # Methods at even places, relations between them.
    parts = re.split(r"\s([>~])\s", chain)
    spreads = []
    for name in parts[::2]:
        if _NUMBER.fullmatch(name):
            spreads.append((float(name), float(name)))
        else:
            row = find(suite, case, name, metric)
            spreads.append((row.low, row.high))
    for relation, first, second in zip(parts[1::2], spreads, spreads[1:], strict=False):
        larger, overlap = first[0] > second[1], first[0] <= second[1] and second[0] <= first[1]
        if not (larger if relation == ">" else overlap):
            raise ValueError(f"It does not hold that {claim}: {first} and {second}.")


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
