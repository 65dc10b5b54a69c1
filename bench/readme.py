"""`python -m recjax.bench.readme`: renders the README's tables from the committed result files.

A table stands between `<!-- results: SUITE | METRIC; METRIC -->` and `<!-- end -->`. A suite that
takes hours may have been run in parts (`--only`), each into a folder of its own; of each case the
newest run counts. A table shows the cases that know its first metric, so that one suite may fill
several; `SUITE: CASE; CASE` shows those alone.
"""

from pathlib import Path
import re

from . import results

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(
    r"(<!-- results: (\w+)(?:: ([^|>]+))? \| ([^>]+) -->\n).*?(<!-- end -->)", re.DOTALL
)


def render(text: str, folder: Path = ROOT / "bench" / "results") -> str:
    """`text` with every table made anew from `results.json` in or below `folder/SUITE`."""

    def table(match: re.Match[str]) -> str:
        opening, suite, wanted, metrics, closing = match.groups()
        columns = [metric.strip() for metric in metrics.split(";")]
        only = [case.strip() for case in wanted.split(";")] if wanted else None
        cases: dict[str, tuple[str, str, list[results.Row]]] = {}
        paths = sorted((folder / suite).rglob("results.json"), key=lambda p: (len(p.parts), p))
        if not paths:
            raise FileNotFoundError(f"There is no results.json of suite {suite!r} below {folder}.")
        for path in paths:
            head, rows = results.read(path)
            date = head["date"]
            where = f"{head['device']}, {date[:10]}, jax {head['versions']['jax']}"
            note = f"`{head['command']}` on {where}"
            for name in dict.fromkeys(row.case for row in rows):
                if name not in cases or date >= cases[name][0]:
                    cases[name] = date, note, [row for row in rows if row.case == name]
        if unknown := sorted(set(only or ()) - cases.keys()):
            raise ValueError(f"There is no result of case {unknown[0]!r} of suite {suite!r}.")
        shown = [
            (note, rows)
            for name, (_, note, rows) in cases.items()
            if (only is None or name in only) and any(row.metric == columns[0] for row in rows)
        ]
        body = results.markdown([row for _, rows in shown for row in rows], columns)
        notes = dict.fromkeys(note for note, _ in shown)
        return f"{opening}{body}\n\n{'; '.join(notes)}\n{closing}"

    return _BLOCK.sub(table, text)


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(render(page.read_text()))
