"""Where a run's time goes: CPU seconds by file of tests, whatever else keeps the cores busy.

`CPU_SECONDS=FILE` has every process of pytest append lines "gate, file, seconds" to FILE, what the
tests started included. A file's first test pays for what it shares with later files: compiled
programs come from one cache.
"""

import collections
import os

import pytest

SPENT = collections.Counter()


def _cpu():
    """Seconds of this process and of what it started and waited for."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    before = _cpu()
    result = yield
    SPENT[item.location[0]] += _cpu() - before
    return result


def pytest_sessionfinish():
    rest = _cpu() - SPENT.total()
    with open(os.environ["CPU_SECONDS"], "a") as file:
        for name, seconds in [*SPENT.items(), ("starting, importing, collecting", rest)]:
            file.write(f"{os.environ.get('GATE', '')}\t{name}\t{seconds:.1f}\n")
