"""`python -m recjax.bench.readme`: renders the README's tables from the committed result files.

A table stands between `<!-- results: SUITE | METRIC; METRIC -->` and `<!-- end -->`. A suite that
takes hours may have been run in parts (`--only`), each into a folder of its own; a case that has
one replaces what a run of the whole suite said of it.
"""

from pathlib import Path
import re

from . import results

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"(<!-- results: (\w+) \| ([^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(text: str, folder: Path = ROOT / "bench" / "results") -> str:
    """`text` with every table made anew from `results.json` in or below `folder/SUITE`."""

    def table(match: re.Match[str]) -> str:
        opening, suite, metrics, closing = match.groups()
        columns = [metric.strip() for metric in metrics.split(";")]
        cases, notes = {}, []
        paths = sorted((folder / suite).rglob("results.json"), key=lambda p: (len(p.parts), p))
        if not paths:
            raise FileNotFoundError(f"There is no results.json of suite {suite!r} below {folder}.")
        for path in paths:
            head, more = results.read(path)
            cases |= {name: [row for row in more if row.case == name] for name in _cases(more)}
            where = f"{head['device']}, {head['date']}, jax {head['versions']['jax']}"
            notes.append(f"`{head['command']}` on {where}")
        rows = [row for case in cases.values() for row in case]
        return f"{opening}{results.markdown(rows, columns)}\n\n{'; '.join(notes)}\n{closing}"

    return _BLOCK.sub(table, text)


def _cases(rows: list[results.Row]) -> list[str]:
    return list(dict.fromkeys(row.case for row in rows))


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(render(page.read_text()))
