"""Inputs of a program: checked against what it takes, and padded to the sizes that it takes."""

from typing import Any

import numpy as np

from ..zoo.batch import part_of
from ..zoo.features import ROLES


class ArtifactError(ValueError):
    """An artifact cannot be made, or not be used as it is; the message is one line."""


def taken(batch: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """The parts of a batch that a program takes, as arrays; fields that it lacks are left out."""
    if not isinstance(batch, dict):
        raise ArtifactError(f"A batch is a dict, got {type(batch).__name__}.")
    taken: dict[str, Any] = {}
    for name, spec in inputs.items():
        given = batch.get(name, {} if isinstance(spec, dict) and name in ROLES else None)
        if given is None:
            raise ArtifactError(f"batch must hold {name!r}, got {', '.join(map(str, batch))}.")
        if not isinstance(spec, dict):
            taken[name] = array(f"batch[{name!r}]", given)
            continue
        if not isinstance(given, dict):
            raise ArtifactError(f"batch[{name!r}] must be a dict of fields, got {given!r:.60}.")
        if name not in ROLES and (missing := [field for field in spec if field not in given]):
            raise ArtifactError(f"batch[{name!r}] must hold {missing[0]!r}.")
        taken[name] = {
            field: array(f"batch[{name!r}][{field!r}]", given[field])
            for field in spec
            if field in given
        }
    return taken


def array(name: str, value: Any) -> np.ndarray:
    """The value as an array. Raises ArtifactError if it is none."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{name} is no array: {error}") from error


_KINDS = {"b": "b", "i": "iu", "u": "u", "f": "iuf"}


def checked(name: str, value: np.ndarray, spec: Any, lead: tuple[int, ...]) -> np.ndarray:
    """The array in the program's dtype. Raises ArtifactError for another shape or kind."""
    dtype = np.dtype(spec.dtype)
    shape = (*lead, *spec.shape[len(lead) :])
    if value.shape != shape:
        raise ArtifactError(f"{name} must have shape {shape}, got {value.shape}.")
    if value.dtype.kind not in _KINDS[dtype.kind]:
        raise ArtifactError(f"{name} must hold {dtype}, got {value.dtype}.")
    return value.astype(dtype)


def check_values(fitted: dict[str, Any], sizes: dict[str, int]) -> None:
    """Raises ArtifactError for values that no model can make sense of."""
    group = fitted.get("group")
    if group is not None and group.size and not -1 <= group.min() <= group.max() < sizes["G"]:
        raise ArtifactError(f"batch['group'] must be in [-1, {sizes['G']}).")
    preference = fitted.get("preference")
    if preference is not None and not ((preference >= 0) & np.isfinite(preference)).all():
        raise ArtifactError("batch['preference'] must hold finite numbers >= 0.")


def grown(batch: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
    """Zeros behind what each array of a batch holds, up to sizes by the axes of `zoo.batch`."""

    def grow(axes: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: grow(axes, one) for name, one in value.items()}
        value = np.asarray(value)
        has, wanted = value.shape, list(value.shape)
        for at, axis in enumerate(axes[: len(has)]):
            wanted[at] = max(has[at], sizes.get(axis, 0))
        if tuple(wanted) == has:
            return value
        found = np.zeros(wanted, value.dtype)
        found[tuple(map(slice, has))] = value
        return found

    return {name: grow(part_of(name).axes, value) for name, value in batch.items()}
