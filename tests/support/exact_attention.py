"""Target attention and its gradients in float64 NumPy, one loop per candidate.

Shares no code with the package.
"""

import jax
import numpy as np


def exact_activation(x, layer, activation):
    if activation == "sigmoid":
        return 1 / (1 + np.exp(-x))
    if activation == "relu":
        return np.where(x.real > 0, x, 0)
    if activation == "prelu":
        return np.where(x.real > 0, x, layer.alpha * x)
    p = 1 / (1 + np.exp(-(x - layer.mean) / np.sqrt(layer.variance + 1e-8)))
    return p * x + (1 - p) * layer.alpha * x


def exact_scores(query, keys, mask, weights, activation, normalize):
    dtype = np.result_type(query, keys, *jax.tree.leaves(weights))  # complex for a gradient
    out = np.zeros((*query.shape[:2], keys.shape[1]), dtype)
    for c in range(query.shape[1]):
        q = np.broadcast_to(query[:, c : c + 1], keys.shape)
        h = np.concatenate([q, keys, q - keys, q * keys], axis=-1)
        for layer in weights.layers:
            h = exact_activation(h @ layer.kernel + layer.bias, layer, activation)
        score = h @ weights.out_kernel + (0 if weights.out_bias is None else weights.out_bias)
        if normalize == "none":
            out[:, c] = score * mask
            continue
        for b in range(len(query)):
            e = np.exp(score[b, mask[b]] - score[b, mask[b]].real.max(initial=-np.inf))
            out[b, c, mask[b]] = e / e.sum()
    return out


def exact(query, keys, mask, weights, activation, normalize):
    scores = exact_scores(query, keys, mask, weights, activation, normalize)
    return np.einsum("bcl,bld->bcd", scores, keys)


def float64(query, keys, mask, weights):
    to = lambda x: np.asarray(x, np.float64)
    return to(query), to(keys), np.asarray(mask), jax.tree.map(to, weights)


def exact_gradients(query, keys, mask, weights, g, activation, normalize):
    """Of sum(out * g), each entry by a complex step: f(x + ih).imag / h has no cancellation."""
    step = 1e-30

    def derivative(f, x, index):
        x = x.astype(np.complex128)
        x[index] += 1j * step
        out = exact(*f(x), activation, normalize)
        return np.sum(out.imag / step * g, axis=-1)  # (B, C)

    to_query, to_keys = np.zeros_like(query), np.zeros_like(keys)
    for d in range(query.shape[2]):  # All candidates at once: each has its own output.
        moved = derivative(lambda q: (q, keys, mask, weights), query, np.s_[:, :, d])
        to_query[:, :, d] = moved
    for i in np.ndindex(keys.shape[1:]):  # All requests at once, likewise.
        moved = derivative(lambda k: (query, k, mask, weights), keys, np.s_[:, *i])
        to_keys[:, *i] = moved.sum(axis=1)
    leaves, tree = jax.tree.flatten(weights)
    to_leaves = [np.zeros_like(leaf) for leaf in leaves]
    for n, leaf in enumerate(leaves):
        put = lambda x, n=n: tree.unflatten([*leaves[:n], x, *leaves[n + 1 :]])
        for i in np.ndindex(leaf.shape):
            moved = derivative(lambda x, put=put: (query, keys, mask, put(x)), leaf, i)
            to_leaves[n][i] = moved.sum()
    return to_query, to_keys, tree.unflatten(to_leaves)


def slope(x, layer, activation):
    """d activation / d x, and d activation / d parameter for those that it has."""
    if activation == "sigmoid":
        y = 1 / (1 + np.exp(-x))
        return y * (1 - y), {}
    if activation == "relu":
        return np.where(x > 0, 1.0, 0.0), {}
    if activation == "prelu":
        return np.where(x > 0, 1.0, layer.alpha), {"alpha": np.where(x > 0, 0, x)}
    deviation = np.sqrt(layer.variance + 1e-8)
    p = 1 / (1 + np.exp(-(x - layer.mean) / deviation))
    bend = x * (1 - layer.alpha) * p * (1 - p)  # d activation / d p's argument
    parameters = {
        "alpha": (1 - p) * x,
        "mean": -bend / deviation,
        "variance": -bend * (x - layer.mean) / (2 * deviation**3),
    }
    return p + (1 - p) * layer.alpha + bend / deviation, parameters


def backpropagated(query, keys, mask, weights, g, activation, normalize):
    """The same gradients by hand, for shapes with too many entries to step one by one."""
    to_query, to_keys = np.zeros_like(query), np.zeros_like(keys)
    to_weights = jax.tree.map(np.zeros_like, weights)
    layers = [dict(zip(x._fields, x, strict=True)) for x in to_weights.layers]
    attention = exact_scores(query, keys, mask, weights, activation, normalize)
    out_kernel, out_bias = to_weights.out_kernel, 0.0
    for c in range(query.shape[1]):
        q = np.broadcast_to(query[:, c : c + 1], keys.shape)
        hidden, before = [np.concatenate([q, keys, q - keys, q * keys], axis=-1)], []
        for layer in weights.layers:
            before.append(hidden[-1] @ layer.kernel + layer.bias)
            hidden.append(exact_activation(before[-1], layer, activation))
        along = np.einsum("bld,bd->bl", keys, g[:, c])
        if normalize == "none":
            to_score = along * mask
        else:
            mean = np.sum(attention[:, c] * along, axis=1, keepdims=True)
            to_score = attention[:, c] * (along - mean)
        out_kernel = out_kernel + np.einsum("bl,blh->h", to_score, hidden[-1])
        out_bias += to_score.sum()
        flow = to_score[..., None] * weights.out_kernel
        for n in reversed(range(len(layers))):
            rise, parameters = slope(before[n], weights.layers[n], activation)
            for name, share in parameters.items():
                layers[n][name] = layers[n][name] + np.sum(flow * share, axis=(0, 1))
            flow = flow * rise
            layers[n]["bias"] = layers[n]["bias"] + flow.sum(axis=(0, 1))
            layers[n]["kernel"] = layers[n]["kernel"] + np.einsum("bli,blh->ih", hidden[n], flow)
            flow = flow @ weights.layers[n].kernel.T
        of_q, of_k, of_difference, of_product = np.split(flow, 4, axis=-1)
        to_query[:, c] = np.sum(of_q + of_difference + of_product * keys, axis=1)
        to_keys += of_k - of_difference + of_product * q
        to_keys += attention[:, c, :, None] * g[:, None, c]
    return (
        to_query,
        to_keys,
        weights._replace(
            layers=tuple(x._replace(**n) for x, n in zip(weights.layers, layers, strict=True)),
            out_kernel=out_kernel,
            out_bias=None if weights.out_bias is None else np.asarray(out_bias),
        ),
    )
