"""The Triton kernels of dot attention, which `triton.py` calls. Importing this needs Triton.

A program owns `BQ` queries of one request and walks over tiles of `BL` keys; only `backward_keys`
owns keys, and walks over queries. The queries of a request are neighbours in the grid, so that its
keys come from L2.

The time interval of a key is one of `N` (0 if there are none): what a query says to each of them,
`bias` (Q, NP), is added to the scores by a product with one-hot columns, and the weights are added
up per interval, `spread` (Q, NP), by a product with the same. `mask` is (B, L); `ends` (B, 2) says
where a request's real keys begin and end. The keys of a request are shared by `S` programs, a part
each, whose results XLA adds. Widths are padded with zeros to `DP` and `NP`. `T` below is the dtype
of the keys: products take it in, and accumulate float32; `PREC` is the precision of those of
float32.
"""

import triton
import triton.language as tl

from .._tiles import part_of, tile

NEVER = tl.constexpr(-2.0e38)


@triton.jit
def forward(
    keys, mask, ends, interval, query, bias,
    found, spread, top, total,
    Q: tl.constexpr, L: tl.constexpr, S: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    N: tl.constexpr, NP: tl.constexpr, BQ: tl.constexpr, BL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Of a part, with w_t = exp(s_t - max s): sum w_t k_t, w_t per interval, max s, sum w_t."""
    T: tl.constexpr = keys.dtype.element_ty
    b, q, inside, d, j = _mine(Q, DP, NP, BQ)
    s = tl.program_id(1)
    asked, said = _queries(query, bias, b * Q + q, inside, d, j, D, NP)
    of_keys, of_intervals = tl.zeros((BQ, DP), tl.float32), tl.zeros((BQ, NP), tl.float32)
    most, mass = tl.full((BQ,), NEVER, tl.float32), tl.zeros((BQ,), tl.float32)
    low, high = part_of(ends, b, s, S, BL)
    for i in range(low, high):
        k, real, _, _ = tile(keys, mask, b, i, d, L, D, BL)
        hot = _one_hot(interval, b, i, j, L, N, BL)
        score = tl.where(real[None, :], _scores(asked, said, k, hot, N, PREC), NEVER)
        new = tl.maximum(most, tl.max(score, 1))
        weight = tl.where(real[None, :], tl.exp(score - new[:, None]), 0.0)
        keep = tl.exp(most - new)
        mass = mass * keep + tl.sum(weight, 1)
        of_keys = tl.dot(weight.to(T), k, of_keys * keep[:, None], input_precision=PREC)
        if N:
            of_intervals = tl.dot(
                weight, tl.trans(hot), of_intervals * keep[:, None], input_precision=PREC
            )
        most = new
    part = (b * Q + q) * S + s
    tl.store(found + part[:, None] * DP + d[None, :], of_keys, mask=inside[:, None])
    tl.store(spread + part[:, None] * NP + j[None, :], of_intervals, mask=inside[:, None])
    tl.store(top + part, most, mask=inside)
    tl.store(total + part, mass, mask=inside)


@triton.jit
def backward_queries(
    keys, mask, ends, interval, query, bias, to_found, to_spread, log_mass, delta,
    to_query, to_bias,
    Q: tl.constexpr, L: tl.constexpr, S: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    N: tl.constexpr, NP: tl.constexpr, BQ: tl.constexpr, BL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Gradients of queries and of what they say to intervals, of a part."""
    T: tl.constexpr = keys.dtype.element_ty
    b, q, inside, d, j = _mine(Q, DP, NP, BQ)
    s, row = tl.program_id(1), b * Q + q
    asked, said = _queries(query, bias, row, inside, d, j, D, NP)
    g, h = _queries(to_found, to_spread, row, inside, d, j, D, NP)
    mass = tl.load(log_mass + row, mask=inside, other=0.0)
    drop = tl.load(delta + row, mask=inside, other=0.0)
    dq, db = tl.zeros((BQ, DP), tl.float32), tl.zeros((BQ, NP), tl.float32)
    low, high = part_of(ends, b, s, S, BL)
    for i in range(low, high):
        k, real, _, _ = tile(keys, mask, b, i, d, L, D, BL)
        hot = _one_hot(interval, b, i, j, L, N, BL)
        _, ds = _score_gradient(asked, said, g, h, k, hot, real, mass, drop, N, PREC)
        dq = tl.dot(ds.to(T), k, dq, input_precision=PREC)
        if N:
            db = tl.dot(ds, tl.trans(hot), db, input_precision=PREC)
    part = row * S + s
    tl.store(to_query + part[:, None] * DP + d[None, :], dq, mask=inside[:, None])
    tl.store(to_bias + part[:, None] * NP + j[None, :], db, mask=inside[:, None])


@triton.jit
def backward_keys(
    keys, mask, ends, interval, query, bias, to_found, to_spread, log_mass, delta,
    to_keys,
    Q: tl.constexpr, L: tl.constexpr, S: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    N: tl.constexpr, NP: tl.constexpr, BQ: tl.constexpr, BL: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of keys, summed over the queries; zeros where masked."""
    T: tl.constexpr = keys.dtype.element_ty
    tiles: tl.constexpr = (L + BL - 1) // BL
    b, i = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    d, j = tl.arange(0, DP), tl.arange(0, NP)
    low, high = part_of(ends, b, 0, 1, BL)
    k, real, at, inside_history = tile(keys, mask, b, i, d, L, D, BL)
    hot = _one_hot(interval, b, i, j, L, N, BL)
    dk = tl.zeros((BL, DP), tl.float32)
    for n in range(tl.where((i >= low) & (i < high), tl.cdiv(Q, BQ), 0)):
        q = n * BQ + tl.arange(0, BQ)
        inside, row = q < Q, b * Q + q
        asked, said = _queries(query, bias, row, inside, d, j, D, NP)
        g, h = _queries(to_found, to_spread, row, inside, d, j, D, NP)
        # Queries that are not there find nothing.
        mass = tl.load(log_mass + row, mask=inside, other=-NEVER)
        drop = tl.load(delta + row, mask=inside, other=0.0)
        weight, ds = _score_gradient(asked, said, g, h, k, hot, real, mass, drop, N, PREC)
        dk = tl.dot(tl.trans(ds.to(T)), asked, dk, input_precision=PREC)
        dk = tl.dot(tl.trans(weight.to(T)), g, dk, input_precision=PREC)
    tl.store(to_keys + at, dk.to(T), mask=inside_history)


@triton.jit
def _mine(Q: tl.constexpr, DP: tl.constexpr, NP: tl.constexpr, BQ: tl.constexpr):
    """The request and the queries of this program, which of those there are, and columns."""
    blocks: tl.constexpr = (Q + BQ - 1) // BQ
    q = tl.program_id(0) % blocks * BQ + tl.arange(0, BQ)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    return b, q, q < Q, tl.arange(0, DP), tl.arange(0, NP)


@triton.jit
def _queries(wide, narrow, row, inside, d, j, D: tl.constexpr, NP: tl.constexpr):
    """Some rows of an array as wide as a key, and of one with a column per interval."""
    w = tl.load(
        wide + row[:, None] * D + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0
    )
    return w, tl.load(narrow + row[:, None] * NP + j[None, :], mask=inside[:, None], other=0.0)


@triton.jit
def _one_hot(interval, b, i, j, L: tl.constexpr, N: tl.constexpr, BL: tl.constexpr):
    """A column per key of a tile, with a one in the row of its interval."""
    t = i * BL + tl.arange(0, BL)
    if N:
        of_key = tl.load(interval + b * L + t, mask=t < L, other=-1)
        hot = (of_key[None, :] == j[:, None]) & (j < N)[:, None]
    else:
        hot = (j[:, None] < 0) & (t[None, :] < 0)
    return hot.to(tl.float32)


@triton.jit
def _scores(asked, said, k, hot, N: tl.constexpr, PREC: tl.constexpr):
    """Scores of keys and of their intervals."""
    score = tl.dot(asked, tl.trans(k), input_precision=PREC)
    if N:
        score = tl.dot(said, hot, score, input_precision=PREC)
    return score


@triton.jit
def _score_gradient(
    asked, said, g, h, k, hot, real, log_mass, delta, N: tl.constexpr, PREC: tl.constexpr
):
    """Weights of the keys and the gradient of their scores.

    `g` and `h` are the gradients of `found` and `spread`; `log_mass` = log sum_t exp(s_t),
    `delta` = g . found + h . spread.
    """
    score = _scores(asked, said, k, hot, N, PREC)
    weight = tl.where(real[None, :], tl.exp(score - log_mass[:, None]), 0.0)
    along = _scores(g, h, k, hot, N, PREC)
    return weight, weight * (along - delta[:, None])
