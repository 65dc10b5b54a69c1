"""Batches that are assembled before they are asked for, so that an accelerator need not wait."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
import os
from typing import TypeVar

import jax

A = TypeVar("A")
B = TypeVar("B")
_MOST_THREADS = 4


def ahead(f: Callable[[A], B], items: Iterable[A], threads: int) -> Iterator[B]:
    """`map(f, items)`, in order, with so many calls under way beyond the one that is waited for.

    0 threads call `f` when a result is asked for. More of them help as far as `f` leaves the
    interpreter's lock alone, as NumPy does in large arrays. `f` must not depend on the order of its
    calls. What it raises is raised here, when its turn has come.
    """
    if not threads:
        yield from map(f, items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="batches") as pool:
        waiting: deque[Future[B]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(f, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def default_threads() -> int:
    """None where JAX computes on the cores itself; else up to four, and not all the cores."""
    if jax.default_backend() == "cpu":
        return 0
    return max(1, min(_MOST_THREADS, (os.cpu_count() or 1) - 1))
