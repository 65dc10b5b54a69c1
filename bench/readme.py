"""`python -m recjax.bench.readme`: renders the README's tables from the committed result files.

A table stands between `<!-- results: SUITE | METRIC, METRIC -->` and `<!-- end -->`.
"""

from pathlib import Path
import re

from . import results

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"(<!-- results: (\w+) \| ([^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(text: str, folder: Path = ROOT / "bench" / "results") -> str:
    """`text` with every table made anew from `folder/SUITE/results.json`."""

    def table(match: re.Match[str]) -> str:
        opening, suite, metrics, closing = match.groups()
        head, rows = results.read(folder / suite / "results.json")
        columns = [metric.strip() for metric in metrics.split(",")]
        where = f"{head['device']}, {head['date']}, jax {head['versions']['jax']}"
        note = f"`{head['command']}` on {where}"
        return f"{opening}{results.markdown(rows, columns)}\n\n{note}\n{closing}"

    return _BLOCK.sub(table, text)


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(render(page.read_text()))
