"""Where a run's time goes: CPU seconds by gate and file of tests, whatever else the cores do.

`CPU_SECONDS=FILE` has every process of pytest add lines to FILE (see `conftest.py`), as `.ci/run`
does; `python tests/seconds.py FILE` prints them as a table, and with `--into PAGE` writes the gates
and their dearest files between the marks of a page. What tests start and wait for counts.
"""

import collections
import os
from pathlib import Path
import sys

import pytest

STARTING = "starting, importing, collecting"
SPENT = collections.Counter()


def _cpu():
    """Seconds of this process and of what it started and waited for."""
    return sum(os.times()[:4])


def pytest_collection_finish():
    SPENT[STARTING] = _cpu()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    before = _cpu()
    result = yield
    SPENT[item.location[0]] += _cpu() - before
    return result


def pytest_sessionfinish():
    gate = os.environ.get("GATE", "")
    lines = [f"{gate}\t{name}\t{seconds:.1f}\n" for name, seconds in SPENT.items()]
    with open(os.environ["CPU_SECONDS"], "a") as file:
        file.write("".join(lines))


def table(lines):
    """Of "gate, file, seconds", with the total of each gate, the dearest first."""
    files, gates = collections.Counter(), collections.Counter()
    for line in lines:
        gate, name, seconds = line.split("\t")
        files[gate, name] += float(seconds)
        gates[gate] += float(seconds)
    rows = []
    for gate, total in gates.most_common():
        rows.append(f"{total:7.0f}  {gate}")
        rows += [f"{s:7.0f}  {gate}  {name}" for (g, name), s in files.most_common() if g == gate]
    return rows


def markdown(lines, files_each=3):
    """The gates and their dearest files as a table of Markdown."""
    rows, shown = ["| CPU s | gate | file |", "|---|---|---|"], collections.Counter()
    for row in table(lines):
        seconds, gate, *name = row.split(maxsplit=2)
        shown[gate] += 1
        if shown[gate] <= 1 + files_each:
            rows.append(f"| {seconds} | {gate} | {name[0] if name else 'all'} |")
    return "\n".join(rows)


if __name__ == "__main__":
    found = Path(sys.argv[1]).read_text().splitlines()
    if "--into" in sys.argv:
        page = Path(sys.argv[sys.argv.index("--into") + 1])
        opening, closing = "<!-- seconds -->\n", "<!-- end -->"
        before, _, rest = page.read_text().partition(opening)
        _, _, after = rest.partition(closing)
        page.write_text(before + opening + markdown(found) + "\n" + closing + after)
    else:
        print(*table(found), sep="\n")
