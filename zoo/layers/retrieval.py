r"""Parts of retrieval models: scoring by the nearest interest, and losses over shared negatives.

A retrieval model turns a user into K vectors and an item into one; the score of a pair is the
largest inner product. It is trained on positives and on S items drawn for the whole batch.
Sampled softmax, with the candidate i, the draws j, and Q(.) the expected count of an item among
the draws (Jean et al., "On Using Very Large Target Vocabulary for Neural Machine Translation",
ACL 2015, https://arxiv.org/abs/1412.2007):

    loss = -log [ exp(s_i - log Q(i)) / (exp(s_i - log Q(i)) + sum_{j != i} exp(s_j - log Q(j))) ]

A draw that is the candidate itself is an accidental hit and left out of the sum, as is one that had
not appeared when the request was made.
Shapes: `B` requests, `L` events, `C` candidates, `K` interests, `S` shared draws, `D` width.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ...kernels.target_attention import MASKED
from ..batch import Batch
from ..features import Field, Schema
from .losses import label_of, mean_over


def identity_field(schema: Schema) -> Field:
    """The field that says which item it is: the first id among those of items."""
    sets = [f.name for f in schema.role("candidate") if f.kind == "bag" and _is_id(schema, f.name)]
    if sets:
        raise ValueError(f"A retrieval model finds single items, but candidate.{sets[0]} is a set.")
    for field in schema.item_fields:
        if field.kind == "id":
            return field
    raise ValueError(
        "A retrieval model needs an id field that stands in candidate and history, got "
        f"{[field.name for field in schema.item_fields]}."
    )


def _is_id(schema: Schema, name: str) -> bool:
    twin = schema.find("history", name)
    return twin is not None and twin.kind == "id"


def nearest_interest(
    users: Float[Array, "B K D"], mask: Bool[Array, "B K"], items: Float[Array, "B C D"]
) -> Float[Array, "B C"]:
    """max_k v_k . e over the user's real vectors."""
    scores = jnp.einsum("bkd,bcd->bck", users, items)
    return jnp.max(jnp.where(mask[:, None, :], scores, MASKED), axis=-1)


def identity_schema(schema: Schema) -> Schema:
    """The schema of batches of which only the items' identity is read."""
    name = identity_field(schema).name
    return dataclasses.replace(schema, fields=tuple(f for f in schema.fields if f.name == name))


def left_out_draws(schema: Schema, batch: Batch) -> Bool[Array, "B C S"]:
    """Draws that do not count: the candidate itself, and items that had not yet appeared."""
    name = identity_field(schema).name
    hit = batch["candidate"][name][..., None] == batch["sampled"][name][None, None]
    if "sampled_mask" in batch:
        hit = hit | ~batch["sampled_mask"][:, None]
    return hit


def sampled_softmax_loss(
    positive: Float[Array, "B C"],
    negative: Float[Array, "B C S"],
    hit: Bool[Array, "B C S"],
    batch: Batch,
    task: str,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """The sampled softmax above, a mean over the positives of all devices.

    `positive` and `negative` are scores s of the candidates and, against the same user, of the
    draws; `hit` marks draws that do not count.
    """
    mask = batch["candidate_mask"]
    positive = jnp.where(mask, positive - batch["candidate_log_q"], 0.0)
    negative = jnp.where(hit, MASKED, negative - batch["sampled_log_q"][None, None])
    negative = jnp.where(mask[..., None], negative, 0.0)
    each = jnp.logaddexp(positive, jax.nn.logsumexp(negative, axis=-1)) - positive
    return mean_over_positives(each, batch, task, axis_name=axis_name)


def mean_over_positives(
    each: Float[Array, "B C"],
    batch: Batch,
    task: str,
    *,
    count: Float[Array, "B C"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """sum(w y each) / sum(w y count) over the real candidates of all devices; 0 if there is none.

    `y` is the label, `w` the weight; `count` says how many terms `each` sums, 1 by default.
    """
    label = label_of(batch, task)
    weight = label * batch.get("weight", {}).get(task, jnp.ones_like(label))
    weight = jnp.where(batch["candidate_mask"], weight, 0.0)
    return mean_over(weight * each, weight if count is None else weight * count, axis_name)


def newest(mask: Bool[Array, "B L"], window: int) -> Bool[Array, "B L"]:
    """The newest `window` of the real events; all of them if `window` is 0."""
    if window == 0:
        return mask
    since: Int[Array, "B L"] = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]
    return mask & (since <= window)
