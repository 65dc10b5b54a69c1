"""Calls that are made before their results are asked for."""

import threading
import time

import pytest

from recjax.train.data.ahead import ahead, default_threads


@pytest.mark.parametrize("threads", [0, 1, 3, 20])
def test_it_is_map(threads):
    def slow_first(x):
        time.sleep(0.02 if x == 0 else 0)
        return 2 * x

    assert list(ahead(slow_first, range(10), threads)) == list(range(0, 20, 2))


def test_no_more_is_under_way_than_threads():
    calls, goes_on = [], threading.Event()

    def wait(x):
        calls.append(x)
        assert goes_on.wait(timeout=30)

    results = ahead(wait, range(100), 3)
    taker = threading.Thread(target=next, args=(results,))
    taker.start()
    deadline = time.monotonic() + 30
    while len(calls) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert sorted(calls) == [0, 1, 2]
    goes_on.set()
    taker.join()
    results.close()
    assert len(calls) <= 4
    assert not [x for x in threading.enumerate() if x.name.startswith("batches")]


def test_without_threads_nothing_is_under_way():
    started = []
    next(ahead(started.append, range(100), 0))
    assert started == [0]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_is_raised_when_its_turn_has_come(threads):
    results = ahead(lambda x: 1 // (3 - x), range(5), threads)
    assert [next(results), next(results), next(results)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_cores_that_compute_are_left_alone(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    assert default_threads() == 0
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    for cores, threads in ((None, 1), (1, 1), (2, 1), (4, 3), (64, 4)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert default_threads() == threads
