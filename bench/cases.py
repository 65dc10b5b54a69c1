"""Cases of suites by name."""

from collections.abc import Sequence
from typing import Any


def choose(cases: Sequence[Any], only: list[str] | None) -> list[Any]:
    """The cases of these names; all of them by default. Raises ValueError for another name."""
    found = {case.name: case for case in cases}
    unknown = sorted(set(only or ()) - found.keys())
    if unknown:
        raise ValueError(f"Unknown case {unknown[0]!r}; at hand are {'; '.join(found)}.")
    return [found[name] for name in only or found]
