"""Dot attention and its gradients in float64 NumPy, one softmax per query.

Shares no code with the package.
"""

import numpy as np


def float64(query, keys, mask, interval=None, table=None):
    to = lambda x: None if x is None else np.asarray(x, np.float64)
    index = None if interval is None else np.asarray(interval)
    return to(query), to(keys), np.asarray(mask), index, to(table)


def events(keys, interval, table):
    """z_t; an interval that is no row of the table has zeros."""
    if table is None:
        return keys
    rows = np.zeros((*keys.shape[:2], table.shape[1]))
    known = (interval >= 0) & (interval < len(table))
    rows[known] = table[interval[known]]
    return np.concatenate([keys, rows], axis=-1)


def weights(query, z, mask):
    out = np.zeros((*query.shape[:2], z.shape[1]))
    for b, q in np.ndindex(*query.shape[:2]):
        score = z[b, mask[b]] @ query[b, q]
        if len(score):
            e = np.exp(score - score.max())
            out[b, q, mask[b]] = e / e.sum()
    return out


def exact(query, keys, mask, interval=None, table=None):
    z = events(keys, interval, table)
    return np.einsum("bql,blz->bqz", weights(query, z, mask), z)


def exact_gradients(query, keys, mask, interval, table, g):
    """Of sum(out * g): for query and keys, and for the table if there is one."""
    z, width = events(keys, interval, table), keys.shape[2]
    attention = weights(query, z, mask)
    along = np.einsum("bqz,blz->bql", g, z)
    to_score = attention * (along - np.sum(attention * along, axis=-1, keepdims=True))
    to_query = np.einsum("bql,blz->bqz", to_score, z)
    to_z = np.einsum("bql,bqz->blz", to_score, query) + np.einsum("bql,bqz->blz", attention, g)
    if table is None:
        return to_query, to_z
    to_table = np.zeros_like(table)
    known = (interval >= 0) & (interval < len(table))
    np.add.at(to_table, interval[known], to_z[known][:, width:])
    return to_query, to_z[..., :width], to_table
