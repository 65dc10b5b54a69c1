"""The Triton kernels of target attention, which `triton.py` calls. Importing this needs Triton.

Everything is transposed, units in rows and keys in columns: what belongs to a unit (bias, slope,
their gradients) then takes one or two registers per thread instead of sixteen, and the sums over
keys stay within a few threads. A program owns one candidate of one request, holds its
M_q^T (H, D), and walks over tiles of `BL` keys. The candidates of a request are neighbours in the
grid, so that its keys come from L2. Only `backward_keys` owns keys, and walks over candidates.

Sides of blocks are powers of two, and 80 units padded to 128 would waste a third of the tensor
cores. So the first hidden layer comes in two parts of `HA` + `HB` units (80 = 64 + 16), padded
with zero weights; names end in `a` and `b`. The second is padded to `G`, widths to `DP`.

`mask` is (B, L); `ends` (B, 2) says where a request's real keys begin and end. The keys of a
request are shared by `S` programs, a part each, whose results XLA adds. `T` below is the dtype of
the keys: products take it in, and accumulate float32. `ACT` is an index into `ACTIVATIONS`, whose
parameters come as (3, units) rows alpha, scale, shift; `SOFT` says whether to normalise; `PREC` is
the precision of float32 products.
"""

import triton
import triton.language as tl

from .._tiles import part_of, tile

ACTIVATIONS = ("sigmoid", "relu", "prelu", "dice")


@triton.jit
def forward(
    keys, mask, ends, mixed, own, act1, w2, b2, act2, w3, b3,
    pooled, top, total,
    C: tl.constexpr, L: tl.constexpr, S: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    HA: tl.constexpr, HB: tl.constexpr, G: tl.constexpr, BL: tl.constexpr,
    ACT: tl.constexpr, SOFT: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """sum_t a_t k_t of a part; with `SOFT` its max_t s_t and sum_t exp(s_t - max) too."""
    c, b, s = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    T: tl.constexpr = keys.dtype.element_ty
    row = b * C + c
    d = tl.arange(0, DP)
    ma, mb, owna, ownb = _first_weights(mixed, own, row, d, DP, HA, HB)
    p1a, p1b, p2, wa, wb, b2_, w3_ = _other_weights(act1, act2, w2, b2, w3, HA, HB, G, T)
    bias = tl.load(b3)
    found = tl.zeros((DP,), tl.float32)
    most, mass = -2.0e38, 0.0
    low, high = part_of(ends, b, s, S, BL)
    for i in range(low, high):
        k, real, _, _ = tile(keys, mask, b, i, d, L, D, BL)
        _, _, _, _, v = _hidden(k, ma, mb, owna, ownb, p1a, p1b, wa, wb, b2_, ACT, PREC, T)
        score = tl.sum(_activate(v, p2, ACT) * w3_[:, None], 0) + bias
        if SOFT:
            score = tl.where(real, score, -2.0e38)
            new = tl.maximum(most, tl.max(score, 0))
            weight = tl.where(real, tl.exp(score - new), 0.0)
            keep = tl.exp(most - new)
            mass = mass * keep + tl.sum(weight, 0)
            found = found * keep
            most = new
        else:
            weight = tl.where(real, score, 0.0)
        found += tl.sum(weight[:, None] * k.to(tl.float32), 0)
    part = row * S + s
    tl.store(pooled + part * DP + d, found)
    tl.store(top + part, most)
    tl.store(total + part, mass)


@triton.jit
def backward_keys(
    keys, mask, ends, mixed, own, act1, w2, b2, act2, w3, b3,
    gradient, log_mass, delta,
    to_keys,
    C: tl.constexpr, L: tl.constexpr, S: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    HA: tl.constexpr, HB: tl.constexpr, G: tl.constexpr, BL: tl.constexpr,
    ACT: tl.constexpr, SOFT: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of keys, summed over the candidates; zeros where masked."""
    i, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    T: tl.constexpr = keys.dtype.element_ty
    d = tl.arange(0, DP)
    p1a, p1b, p2, wa, wb, b2_, w3_ = _other_weights(act1, act2, w2, b2, w3, HA, HB, G, T)
    bias = tl.load(b3)
    low, high = part_of(ends, b, 0, 1, BL)
    k, real, at, inside = tile(keys, mask, b, i, d, L, D, BL)
    dk = tl.zeros((DP, BL), tl.float32)
    candidates = tl.where((i >= low) & (i < high), C, 0)
    for c in range(candidates):
        row = b * C + c
        g = tl.load(gradient + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        ma, mb, owna, ownb = _first_weights(mixed, own, row, d, DP, HA, HB)
        xa, xb, _, _, v = _hidden(k, ma, mb, owna, ownb, p1a, p1b, wa, wb, b2_, ACT, PREC, T)
        weight, ds, dz, dv = _score_gradient(
            k, real, g, v, p2, w3_, bias,
            tl.load(log_mass + row), tl.load(delta + row), ACT, SOFT,
        )  # fmt: skip
        dv = dv.to(T)
        dxa = tl.dot(tl.trans(wa), dv, input_precision=PREC) * _slope(xa, p1a, ACT)
        dxb = tl.dot(tl.trans(wb), dv, input_precision=PREC) * _slope(xb, p1b, ACT)
        dk = tl.dot(tl.trans(ma), dxa.to(T), dk, input_precision=PREC)
        dk = tl.dot(tl.trans(mb), dxb.to(T), dk, input_precision=PREC)
        dk += g[:, None] * weight[None, :]
    tl.store(to_keys + at, tl.trans(dk).to(T), mask=inside)


@triton.jit
def backward_first(
    keys, mask, ends, mixed, own, act1, w2, b2, act2, w3, b3,
    gradient, log_mass, delta,
    to_mixed, to_own, to_act1,
    C: tl.constexpr, L: tl.constexpr, S: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    HA: tl.constexpr, HB: tl.constexpr, G: tl.constexpr, BL: tl.constexpr,
    ACT: tl.constexpr, SOFT: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Gradients of M_q, of `own` and of the first activation, of a part."""
    c, b, s = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    H: tl.constexpr = HA + HB
    T: tl.constexpr = keys.dtype.element_ty
    row = b * C + c
    d, ha, hb = tl.arange(0, DP), tl.arange(0, HA), HA + tl.arange(0, HB)
    g = tl.load(gradient + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    ma, mb, owna, ownb = _first_weights(mixed, own, row, d, DP, HA, HB)
    p1a, p1b, p2, wa, wb, b2_, w3_ = _other_weights(act1, act2, w2, b2, w3, HA, HB, G, T)
    bias, mass, drop = tl.load(b3), tl.load(log_mass + row), tl.load(delta + row)
    dma, dmb = tl.zeros((HA, DP), tl.float32), tl.zeros((HB, DP), tl.float32)
    downa, downb = tl.zeros((HA,), tl.float32), tl.zeros((HB,), tl.float32)
    alphaa, scalea, shifta = downa, downa, downa
    alphab, scaleb, shiftb = downb, downb, downb
    low, high = part_of(ends, b, s, S, BL)
    for i in range(low, high):
        k, real, _, _ = tile(keys, mask, b, i, d, L, D, BL)
        xa, xb, _, _, v = _hidden(k, ma, mb, owna, ownb, p1a, p1b, wa, wb, b2_, ACT, PREC, T)
        _, _, _, dv = _score_gradient(k, real, g, v, p2, w3_, bias, mass, drop, ACT, SOFT)
        dv = dv.to(T)
        dya = tl.dot(tl.trans(wa), dv, input_precision=PREC)
        dyb = tl.dot(tl.trans(wb), dv, input_precision=PREC)
        more = _to_parameters(xa, p1a, dya, ACT)
        alphaa, scalea, shifta = alphaa + more[0], scalea + more[1], shifta + more[2]
        more = _to_parameters(xb, p1b, dyb, ACT)
        alphab, scaleb, shiftb = alphab + more[0], scaleb + more[1], shiftb + more[2]
        dxa, dxb = dya * _slope(xa, p1a, ACT), dyb * _slope(xb, p1b, ACT)
        downa += tl.sum(dxa, 1)
        downb += tl.sum(dxb, 1)
        dma = tl.dot(dxa.to(T), k, dma, input_precision=PREC)
        dmb = tl.dot(dxb.to(T), k, dmb, input_precision=PREC)
    part = row * S + s
    mine = to_mixed + part * H * DP
    tl.store(mine + ha[:, None] * DP + d[None, :], dma)
    tl.store(mine + hb[:, None] * DP + d[None, :], dmb)
    tl.store(to_own + part * H + ha, downa)
    tl.store(to_own + part * H + hb, downb)
    mine = to_act1 + part * 3 * H
    tl.store(mine + ha, alphaa)
    tl.store(mine + hb, alphab)
    tl.store(mine + H + ha, scalea)
    tl.store(mine + H + hb, scaleb)
    tl.store(mine + 2 * H + ha, shifta)
    tl.store(mine + 2 * H + hb, shiftb)


@triton.jit
def backward_second(
    keys, mask, ends, mixed, own, act1, w2, b2, act2, w3, b3,
    gradient, log_mass, delta,
    to_w2, to_b2, to_act2, to_w3, to_b3,
    C: tl.constexpr, L: tl.constexpr, S: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    HA: tl.constexpr, HB: tl.constexpr, G: tl.constexpr, BL: tl.constexpr,
    ACT: tl.constexpr, SOFT: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Gradients of the second layer and of the score's own weights, of a part."""
    c, b, s = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    H: tl.constexpr = HA + HB
    T: tl.constexpr = keys.dtype.element_ty
    row = b * C + c
    d, ha, hb, u = tl.arange(0, DP), tl.arange(0, HA), HA + tl.arange(0, HB), tl.arange(0, G)
    g = tl.load(gradient + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    ma, mb, owna, ownb = _first_weights(mixed, own, row, d, DP, HA, HB)
    p1a, p1b, p2, wa, wb, b2_, w3_ = _other_weights(act1, act2, w2, b2, w3, HA, HB, G, T)
    bias, mass, drop = tl.load(b3), tl.load(log_mass + row), tl.load(delta + row)
    dwa, dwb = tl.zeros((G, HA), tl.float32), tl.zeros((G, HB), tl.float32)
    db2, dw3, db3 = tl.zeros((G,), tl.float32), tl.zeros((G,), tl.float32), 0.0
    alpha, scale, shift = db2, db2, db2
    low, high = part_of(ends, b, s, S, BL)
    for i in range(low, high):
        k, real, _, _ = tile(keys, mask, b, i, d, L, D, BL)
        _, _, ya, yb, v = _hidden(k, ma, mb, owna, ownb, p1a, p1b, wa, wb, b2_, ACT, PREC, T)
        _, ds, dz, dv = _score_gradient(k, real, g, v, p2, w3_, bias, mass, drop, ACT, SOFT)
        dw3 += tl.sum(ds[None, :] * _activate(v, p2, ACT), 1)
        db3 += tl.sum(ds, 0)
        more = _to_parameters(v, p2, dz, ACT)
        alpha, scale, shift = alpha + more[0], scale + more[1], shift + more[2]
        db2 += tl.sum(dv, 1)
        dv = dv.to(T)
        dwa = tl.dot(dv, tl.trans(ya), dwa, input_precision=PREC)
        dwb = tl.dot(dv, tl.trans(yb), dwb, input_precision=PREC)
    part = row * S + s
    mine = to_w2 + part * G * H
    tl.store(mine + u[:, None] * H + ha[None, :], dwa)
    tl.store(mine + u[:, None] * H + hb[None, :], dwb)
    tl.store(to_b2 + part * G + u, db2)
    tl.store(to_w3 + part * G + u, dw3)
    tl.store(to_b3 + part, db3)
    mine = to_act2 + part * 3 * G
    tl.store(mine + u, alpha)
    tl.store(mine + G + u, scale)
    tl.store(mine + 2 * G + u, shift)


@triton.jit
def _first_weights(mixed, own, row, d, DP: tl.constexpr, HA: tl.constexpr, HB: tl.constexpr):
    """M_q^T and q (W_q + W_d) + b_1, part by part."""
    ha, hb = tl.arange(0, HA), HA + tl.arange(0, HB)
    mixed += row * (HA + HB) * DP
    own += row * (HA + HB)
    ma, mb = (
        tl.load(mixed + ha[:, None] * DP + d[None, :]),
        tl.load(mixed + hb[:, None] * DP + d[None, :]),
    )
    return ma, mb, tl.load(own + ha), tl.load(own + hb)


@triton.jit
def _other_weights(
    act1, act2, w2, b2, w3,
    HA: tl.constexpr, HB: tl.constexpr, G: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Both activations' parameters, W_2^T by parts, b_2 and the score's kernel."""
    H: tl.constexpr = HA + HB
    ha, hb, u = tl.arange(0, HA), HA + tl.arange(0, HB), tl.arange(0, G)
    wa = tl.load(w2 + u[:, None] * H + ha[None, :]).to(T)
    wb = tl.load(w2 + u[:, None] * H + hb[None, :]).to(T)
    p1a, p1b = _parameters(act1, ha, H), _parameters(act1, hb, H)
    return p1a, p1b, _parameters(act2, u, G), wa, wb, tl.load(b2 + u), tl.load(w3 + u)


@triton.jit
def _parameters(at, units, STRIDE: tl.constexpr):
    """Alpha, scale and shift of some units."""
    alpha, scale = tl.load(at + units), tl.load(at + STRIDE + units)
    return alpha[:, None], scale[:, None], tl.load(at + 2 * STRIDE + units)[:, None]


@triton.jit
def _hidden(
    k, ma, mb, owna, ownb, p1a, p1b, wa, wb, b2, ACT: tl.constexpr, PREC: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """The first layer before and after its activation, by parts; the second before."""
    kt = tl.trans(k)
    xa = tl.dot(ma, kt, input_precision=PREC) + owna[:, None]
    xb = tl.dot(mb, kt, input_precision=PREC) + ownb[:, None]
    ya, yb = _activate(xa, p1a, ACT).to(T), _activate(xb, p1b, ACT).to(T)
    v = tl.dot(wb, yb, tl.dot(wa, ya, input_precision=PREC), input_precision=PREC)
    return xa, xb, ya, yb, v + b2[:, None]


@triton.jit
def _score_gradient(
    k, real, g, v, p2, w3, bias, log_mass, delta, ACT: tl.constexpr, SOFT: tl.constexpr
):
    """Weights of the keys; gradients of scores, of the second layer after and before activation.

    `g` is the gradient of the result; `log_mass` = log sum_t exp(s_t), `delta` = g . result.
    """
    score = tl.sum(_activate(v, p2, ACT) * w3[:, None], 0) + bias
    along = tl.sum(k.to(tl.float32) * g[None, :], 1)
    if SOFT:
        weight = tl.where(real, tl.exp(score - log_mass), 0.0)
        ds = weight * (along - delta)
    else:
        weight, ds = tl.where(real, score, 0.0), tl.where(real, along, 0.0)
    dz = ds[None, :] * w3[:, None]
    return weight, ds, dz, dz * _slope(v, p2, ACT)


@triton.jit
def _activate(x, p, ACT: tl.constexpr):
    """The activation of x; p holds its alpha, scale and shift."""
    if ACT == 0:
        return tl.sigmoid(x)
    elif ACT == 1:
        return tl.maximum(x, 0.0)
    elif ACT == 2:
        return tl.where(x > 0, x, p[0] * x)
    else:
        gate = tl.sigmoid(x * p[1] + p[2])
        return x * (gate + (1 - gate) * p[0])


@triton.jit
def _slope(x, p, ACT: tl.constexpr):
    """d activation / d x."""
    if ACT == 0:
        y = tl.sigmoid(x)
        return y * (1 - y)
    elif ACT == 1:
        return tl.where(x > 0, 1.0, 0.0)
    elif ACT == 2:
        return tl.where(x > 0, 1.0, p[0])
    else:
        gate = tl.sigmoid(x * p[1] + p[2])
        return gate + (1 - gate) * p[0] + x * (1 - p[0]) * gate * (1 - gate) * p[1]


@triton.jit
def _to_parameters(x, p, g, ACT: tl.constexpr):
    """Gradients of alpha, scale and shift, given that of the activation; summed over a tile."""
    if ACT == 2:
        alpha = tl.sum(tl.where(x > 0, 0.0, x) * g, 1)
        return alpha, alpha * 0.0, alpha * 0.0
    elif ACT == 3:
        gate = tl.sigmoid(x * p[1] + p[2])
        bent = x * (1 - p[0]) * gate * (1 - gate) * g
        return tl.sum(x * (1 - gate) * g, 1), tl.sum(x * bent, 1), tl.sum(bent, 1)
    else:
        none = tl.sum(g, 1) * 0.0
        return none, none, none
