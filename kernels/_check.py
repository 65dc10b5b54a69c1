"""Refusals of arguments: name, rule, value. Shared by every op in this package."""

from collections.abc import Sequence
from typing import Any


def check_axes(name: str, array: Any, axes: int) -> None:
    """Raises ValueError unless the array has so many axes."""
    if len(array.shape) != axes:
        raise ValueError(f"{name} must have {axes} axes, got shape {tuple(array.shape)}.")


def check_dtype(name: str, array: Any, dtypes: Sequence[str]) -> None:
    """Raises ValueError unless the array is of one of these dtypes."""
    if str(array.dtype) not in dtypes:
        raise ValueError(f"{name} must be {' or '.join(dtypes)}, got {array.dtype}.")


def check_array(name: str, array: Any, shape: Sequence[Any], dtypes: Sequence[str]) -> None:
    """Raises ValueError unless the array has this shape and one of these dtypes."""
    if tuple(array.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(array.shape)}.")
    check_dtype(name, array, dtypes)
