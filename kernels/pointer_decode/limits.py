"""Limits of the kernels of pointer decoding; plain JAX has none."""

from .reference import Direction, Request, Weights
from .rules import Rules

MAX_CANDIDATES = 128
MAX_UNITS = 128
MAX_WIDTH = 512


def refusal(
    request: Request, weights: Weights, direction: Direction | None, rules: Rules | None
) -> str | None:
    """Why none can run these arguments."""
    candidates, width = request.keys.shape[2:]
    units = request.state.shape[1]
    if rules is not None:
        return "rules are for plain JAX"
    if len(weights.bias.shape) > 1:
        return "weights must be those of all requests"
    if direction is not None and direction.weights is not None:
        return "weights must not move"
    for name, size, most in (
        ("candidates", candidates, MAX_CANDIDATES),
        ("units", units, MAX_UNITS),
        ("width", width, MAX_WIDTH),
    ):
        if size > most:
            return f"{name} must be <= {most}, got {size}"
    return None
