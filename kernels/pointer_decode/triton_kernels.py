"""The Triton kernel of pointer decoding, which `triton.py` calls. Importing this needs Triton.

A program owns `BS` lanes of one request and fills their slots one after the other. State, gates and
what is free stay on chip; keys, contexts and rows are read again at every slot, from L2: the lanes
of a request are neighbours in the grid. What costs is the tanh, so it goes candidate by candidate,
past those that are masked, `BA` columns of a head at a time. Matrices would not fit into registers
and come `ROWS` rows at a time.

`N` candidates and `H` units are padded to the powers of two `NP` and `HP`. If the request is
`MOVED`, a lane starts from x + step * to_x. `NOISE` says whether noise is given, or made of a seed;
`SOFT`, whether attention is normalised; `SCALE` is 1 / (heads * temperature). Gates are three
arrays: update, reset, new.
"""

import triton
import triton.language as tl

from . import noise as _noise
from . import turn as _turn

NEVER = tl.constexpr(-2.0e38)
BROKEN = tl.constexpr(_turn.BROKEN)
ROWS = tl.constexpr(16)
STEP, FIRST, SECOND, STRIDE = (
    tl.constexpr(x) for x in (_noise.STEP, _noise.FIRST, _noise.SECOND, _noise.STRIDE)
)


@triton.jit
def decode(
    state, keys, context, rows, to_state, to_keys, to_context, to_rows,
    query, query_bias, score, recurrent, bias, mask, steps, noise,
    order, log_probability,
    S: tl.constexpr, M: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, F: tl.constexpr,
    A: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, BS: tl.constexpr, BA: tl.constexpr,
    MOVED: tl.constexpr, NOISE: tl.constexpr, SOFT: tl.constexpr, SCALE: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """Choices of every lane for its slots, and their log probabilities."""
    blocks: tl.constexpr = (S + BS - 1) // BS
    r = (tl.program_id(0) // blocks).to(tl.int64)
    s = tl.program_id(0) % blocks * BS + tl.arange(0, BS)
    n, j = tl.arange(0, NP), tl.arange(0, HP)
    inside, unit = s < S, j < H
    step = tl.load(steps + s, mask=inside, other=0.0)
    real = tl.load(mask + r * N + n, mask=n < N, other=0) != 0
    free = real[None, :] & (s >= 0)[:, None]
    none = tl.zeros((BS, HP), tl.float32)
    h = none + _moved(state, to_state, (r * H + j)[None, :], unit[None, :], step, MOVED)
    update = none + _row(bias, j, unit)
    reset = none + _row(bias, H + j, unit)
    new = none + _row(bias, 2 * H + j, unit)
    for t in range(M):
        u = tl.sigmoid(update + _times(h, recurrent, j, unit, 3 * H, H, PREC))
        y = tl.sigmoid(reset + _times(h, recurrent, H + j, unit, 3 * H, H, PREC))
        y = _tanh(new + y * _times(h, recurrent, 2 * H + j, unit, 3 * H, H, PREC))
        h = (1 - u) * h + u * y
        update = none + _row(bias, j, unit)
        reset = none + _row(bias, H + j, unit)
        new = none + _row(bias, 2 * H + j, unit)
        total = tl.zeros((BS, NP), tl.float32)
        for f in range(F):
            liked = _scores(
                h, query, query_bias, score, keys, to_keys, mask, step, r, f, n,
                N, F, A, H, BS, NP, BA, MOVED, PREC,
            )  # fmt: skip
            total += liked
            weight = tl.where(real[None, :], liked, 0.0)
            if SOFT:
                liked = tl.where(real[None, :], liked, NEVER)
                weight = tl.where(real[None, :], tl.exp(liked - tl.max(liked, 1)[:, None]), 0.0)
                weight = weight / tl.maximum(tl.sum(weight, 1), 1e-30)[:, None]
            at, row = (r * F + f) * N * 3 * H + j, mask + r * N
            update += _found(weight, context, to_context, at, unit, row, step, N, H, MOVED, PREC)
            at += H
            reset += _found(weight, context, to_context, at, unit, row, step, N, H, MOVED, PREC)
            at += H
            new += _found(weight, context, to_context, at, unit, row, step, N, H, MOVED, PREC)
        slot = (r * S + s) * M + t
        total = tl.where(tl.abs(total) < float("inf"), total * SCALE, BROKEN)
        logit = tl.where(free, total, float("-inf"))
        noisy = logit
        if NOISE == "given":
            at, there = slot[:, None] * N + n[None, :], inside[:, None] & (n < N)[None, :]
            noisy = logit + tl.load(noise + at, mask=there, other=0.0).to(tl.float32)
        elif NOISE == "seeded":
            counter = (s * M + t)[:, None] * STRIDE + n[None, :]
            noisy = logit + _gumbel(tl.load(noise + r), counter.to(tl.uint32))
        noisy = tl.where(free, noisy, float("-inf"))
        some = tl.max(free.to(tl.int32), 1) > 0
        chosen = tl.where(some, tl.argmax(noisy, 1), -1)
        picked = n[None, :] == chosen[:, None]
        top = tl.where(some, tl.max(logit, 1), 0.0)
        mass = tl.sum(tl.where(free, tl.exp(logit - top[:, None]), 0.0), 1)
        mine = tl.sum(tl.where(picked, logit, 0.0), 1) - top - tl.log(tl.where(some, mass, 1.0))
        tl.store(order + slot, chosen, mask=inside)
        tl.store(log_probability + slot, tl.where(some, mine, 0.0), mask=inside)
        free = free & (n[None, :] != chosen[:, None])
        at = (r * N + chosen)[:, None] * 3 * H + j[None, :]
        there = some[:, None] & unit[None, :]
        update += _moved(rows, to_rows, at, there, step, MOVED)
        reset += _moved(rows, to_rows, at + H, there, step, MOVED)
        new += _moved(rows, to_rows, at + 2 * H, there, step, MOVED)


@triton.jit
def _scores(
    h, query, query_bias, score, keys, to_keys, mask, step, r, f, n,
    N: tl.constexpr, F: tl.constexpr, A: tl.constexpr, H: tl.constexpr, BS: tl.constexpr,
    NP: tl.constexpr, BA: tl.constexpr, MOVED: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Score of each candidate by head f, for each lane; 0 where masked."""
    found = tl.zeros((BS, NP), tl.float32)
    for first in range(0, A, BA):
        a = first + tl.arange(0, BA)
        column = a < A
        asked = _times(h, query, f * H * A + a, column, A, H, PREC)
        asked += _row(query_bias, f * A + a, column)
        v = _row(score, f * A + a, column)
        for i in range(N):
            at = ((r * F + f) * N + i) * A + a[None, :]
            if tl.load(mask + r * N + i):
                key = _moved(keys, to_keys, at, column[None, :], step, MOVED)
                mine = tl.sum(v * _tanh(key + asked), 1)
                found = tl.where((n == i)[None, :], found + mine[:, None], found)
    return found


@triton.jit
def _times(
    h, matrix, at, column,
    STRIDE: tl.constexpr, H: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """h W; the first row of W lies at `at`."""
    found = tl.zeros((h.shape[0], at.shape[0]), tl.float32)
    for i in tl.range(h.shape[1] // ROWS, num_stages=1):
        k = i * ROWS + tl.arange(0, ROWS)
        there = (k < H)[:, None] & column[None, :]
        w = tl.load(matrix + k[:, None] * STRIDE + at[None, :], mask=there, other=0.0)
        found = tl.dot(_columns(h, i), w.to(tl.float32), found, input_precision=PREC)
    return found


@triton.jit
def _found(
    weight, context, to_context, at, unit, mask, step,
    N: tl.constexpr, H: tl.constexpr, MOVED: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Contexts by their weights; the first candidate's lies at `at`."""
    found = tl.zeros((weight.shape[0], at.shape[0]), tl.float32)
    moved = found
    for i in tl.range(weight.shape[1] // ROWS, num_stages=1):
        k = i * ROWS + tl.arange(0, ROWS)
        real = tl.load(mask + k, mask=k < N, other=0) != 0
        there, places = real[:, None] & unit[None, :], k[:, None] * 3 * H + at[None, :]
        part = _columns(weight, i)
        x = tl.load(context + places, mask=there, other=0.0).to(tl.float32)
        found = tl.dot(part, x, found, input_precision=PREC)
        if MOVED:
            x = tl.load(to_context + places, mask=there, other=0.0).to(tl.float32)
            moved = tl.dot(part, x, moved, input_precision=PREC)
    return found + step[:, None] * moved


@triton.jit
def _columns(x, i):
    """The i-th `ROWS` columns of x."""
    if x.shape[1] == ROWS:
        return x
    parts = tl.reshape(x, (x.shape[0], x.shape[1] // ROWS, ROWS))
    mine = tl.arange(0, x.shape[1] // ROWS) == i
    return tl.sum(tl.where(mine[None, :, None], parts, 0.0), 1)


@triton.jit
def _moved(x, to_x, at, there, step, MOVED: tl.constexpr):
    """x + step * to_x of each lane, or of all alike."""
    found = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    if MOVED:
        found += step[:, None] * tl.load(to_x + at, mask=there, other=0.0).to(tl.float32)
    return found


@triton.jit
def _row(x, at, there):
    """Numbers that are the same in every lane."""
    return tl.load(x + at, mask=there, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _tanh(x):
    """To 1e-7: the hardware's own is good to three digits."""
    return 1 - 2 / (tl.exp(2 * x) + 1)


@triton.jit
def _gumbel(seed, counter):
    """See `noise.of_counter`."""
    bits = _mixed(_mixed(counter * STEP + 1) ^ seed) >> 9
    return -tl.log(-tl.log((bits.to(tl.float32) + 0.5) * (2.0**-23)))


@triton.jit
def _mixed(x):
    """See `noise.mixed`."""
    x = (x ^ (x >> 16)) * FIRST
    x = (x ^ (x >> 15)) * SECOND
    return x ^ (x >> 16)
