"""Chooses which implementation of an op runs. Shared by every op in this package."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    `unsupported` says why it cannot run these arguments, or returns None if it can. It looks
    only at shapes, dtypes and options, so that it works on tracers too.
    """

    fn: Callable[..., Any]
    unsupported: Callable[..., str | None] = lambda *args, **kwargs: None


def dispatch(table: Mapping[str, Implementation], name: str | None, *args, **kwargs):
    """Runs `table[name]`, or the first entry that supports the arguments if `name` is None.

    A forced name never falls back: it runs, or raises NotImplementedError with the reason.
    """
    if name is not None and name not in table:
        raise ValueError(f"implementation must be None or one of {list(table)}, got {name!r}.")
    reasons = []
    for candidate in table if name is None else [name]:
        reason = table[candidate].unsupported(*args, **kwargs)
        if reason is None:
            return table[candidate].fn(*args, **kwargs)
        reasons.append(f"{candidate}: {reason}")
    raise NotImplementedError(f"no implementation can run these arguments ({'; '.join(reasons)}).")
