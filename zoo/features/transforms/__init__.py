"""Transforms of dense values: every file here is one operation, known by the file's name.

A field's transform is a text: steps from left to right, with their parameters,
`"log1p | zscore(2.3, 0.8) | clip(-5, 5)"`. It is part of the schema, so training and serving cannot
disagree, and a difference can be read. Steps that learn their parameters (`zscore`, `quantile`) may
be named without them; `fitted` fills them in from the values that training sees.

A new operation is one new file with

    apply(values, *parameters) -> values      # float64, shape (n, ...); NaN is a missing value
    fit(values) -> parameters                 # only if it learns them; none of values (n,) is NaN
    check(*parameters)                        # optional; ValueError if they make no sense

What is still missing at the end becomes 0: after `zscore`, the mean.
"""

from collections.abc import Callable
import functools
import importlib
import inspect
import pkgutil
import re
from types import ModuleType
from typing import NamedTuple

import numpy as np

_STEP = re.compile(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*")
OPERATIONS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


class Step(NamedTuple):
    """One operation of a transform; `parameters` is None while they have to be learnt."""

    name: str
    operation: ModuleType
    parameters: tuple[float, ...] | None

    def __str__(self) -> str:
        if not self.parameters:
            return self.name
        # The shortest text that reads back as the same number.
        numbers = (repr(p).removesuffix(".0") for p in self.parameters)
        return f"{self.name}({', '.join(numbers)})"


def parse(text: str) -> tuple[Step, ...]:
    """The steps of a transform.

    Raises:
      ValueError: an unknown operation, parameters that are no numbers, or too few or too many.
    """
    return tuple(_step(part) for part in text.split("|"))


def _step(text: str) -> Step:
    found = _STEP.fullmatch(text)
    name = found[1] if found else text.strip()
    if name not in OPERATIONS:
        raise ValueError(f"unknown transform {name!r}; choose from {', '.join(OPERATIONS)}.")
    operation = importlib.import_module(f".{name}", __name__)
    given = [part.strip() for part in found[2].split(",")] if found and found[2] else []
    try:
        parameters = tuple(float(part) for part in given)
    except ValueError as error:
        raise ValueError(f"transform {text.strip()!r}: parameters must be numbers.") from error
    if not np.isfinite(parameters).all():
        raise ValueError(f"transform {text.strip()!r}: parameters must be finite.")
    if not parameters and hasattr(operation, "fit"):
        return Step(name, operation, None)
    names = list(inspect.signature(operation.apply).parameters.values())[1:]
    if not any(p.kind is p.VAR_POSITIONAL for p in names) and len(parameters) != len(names):
        wanted = ", ".join(p.name for p in names) or "nothing"
        raise ValueError(f"transform {text.strip()!r}: {name} takes ({wanted}).")
    if hasattr(operation, "check"):
        operation.check(*parameters)
    return Step(name, operation, parameters)


def fitted(text: str, values: np.ndarray) -> str:
    """The same transform with what it has to learn learnt from `values` (n,), NaN being missing."""
    steps = []
    values = np.asarray(values, np.float64)
    for step in parse(text):
        if step.parameters is None:
            there = values[np.isfinite(values)]
            step = step._replace(parameters=tuple(float(p) for p in step.operation.fit(there)))
        assert step.parameters is not None
        values = step.operation.apply(values, *step.parameters)
        steps.append(step)
    return " | ".join(map(str, steps))


@functools.lru_cache(maxsize=1024)
def function(text: str) -> Callable[[np.ndarray], np.ndarray]:
    """The transform as a function: numbers (n, ...), NaN where missing, to float32.

    Raises:
      ValueError: see `parse`; or a step has not learnt its parameters.
    """
    steps = parse(text)
    for step in steps:
        if step.parameters is None:
            raise ValueError(
                f"transform {step.name!r} has no parameters yet: `transforms.fitted` learns them "
                "from the values of training."
            )

    def apply(values: np.ndarray) -> np.ndarray:
        values = np.asarray(values, np.float64)
        with np.errstate(over="ignore"):
            for step in steps:
                values = step.operation.apply(values, *(step.parameters or ()))
            return np.where(np.isnan(values), 0.0, values).astype(np.float32)

    return apply
