"""`python -m recjax.bench.readme`: renders the README's tables from the committed result files.

A table stands between `<!-- results: SUITE | METRIC; METRIC -->` and `<!-- end -->`. A suite that
takes hours may have been run in parts (`--only`), each into a folder of its own.
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
        rows, notes = [], []
        paths = sorted((folder / suite).rglob("results.json"))
        if not paths:
            raise FileNotFoundError(f"There is no results.json of suite {suite!r} below {folder}.")
        for path in paths:
            head, more = results.read(path)
            rows += more
            where = f"{head['device']}, {head['date']}, jax {head['versions']['jax']}"
            notes.append(f"`{head['command']}` on {where}")
        return f"{opening}{results.markdown(rows, columns)}\n\n{'; '.join(notes)}\n{closing}"

    return _BLOCK.sub(table, text)


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(render(page.read_text()))
