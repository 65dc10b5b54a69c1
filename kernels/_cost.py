"""The least work of an op. Shared by every op in this package."""

from typing import NamedTuple


class Cost(NamedTuple):
    """Of one call: arithmetic, and inputs and results moved once."""

    flops: int
    bytes: int
