"""Tiles of a history, for Triton kernels of every op. Importing this needs Triton."""

import triton
import triton.language as tl


@triton.jit
def part_of(ends, b, s, S: tl.constexpr, BL: tl.constexpr):
    """The tiles of part s: those between the first and the last real key, evenly shared."""
    low = tl.load(ends + 2 * b) // BL
    high = tl.cdiv(tl.load(ends + 2 * b + 1), BL)
    share = tl.cdiv(tl.maximum(high - low, 0), S)
    return low + s * share, tl.minimum(low + (s + 1) * share, high)


@triton.jit
def tile(keys, mask, b, i, d, L: tl.constexpr, D: tl.constexpr, BL: tl.constexpr):
    """The i-th tile of a request's keys, zeros where masked; which are real; where they lie."""
    t = i * BL + tl.arange(0, BL)
    real = tl.load(mask + b * L + t, mask=t < L, other=0) != 0
    at = (b * L + t)[:, None] * D + d[None, :]
    k = tl.load(keys + at, mask=real[:, None] & (d < D)[None, :], other=0.0)
    return k, real, at, (t < L)[:, None] & (d < D)[None, :]
