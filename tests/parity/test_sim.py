"""SIM against the one of LongCTR, which comes with FuxiCTR.

Theirs searches the whole history and attends to the newest with heads of its own, so only the two
searches compare, with what is older than our short part as their history. Their search multiplies
scores by the mask, so that padding beats real events of negative score: it is right where there
is no padding.
"""

from fuxictr.pytorch.layers import MultiHeadTargetAttention
import jax
import jax.numpy as jnp
from model_zoo.LongCTR.SIM.SIM import SIM as FuxiSIM
import numpy as np
import torch

from parity import fuxi
from parity.oracles import (
    CANDIDATES,
    SCHEMA,
    WIDTH,
    arrays,
    assert_same_function,
    assert_same_output,
    parameters,
    random_arrays,
    random_batch,
    shake,
)
from recjax.zoo import sim
from recjax.zoo.layers.exact_search import Events, ExactSearch

HEADS, HEAD_DIM, TOP_K = 2, 3, 3


def exact_search(weights, name, scale=1.0):
    """The heads before W_o, which they do not have: it is a part of the tower's first layer."""
    head = lambda kind, i: weights[f"{name}W_{kind}.weight"].T[:, i * HEAD_DIM : (i + 1) * HEAD_DIM]
    parts = [("w_a", "q", scale), ("w_b", "k", 1.0), ("w_v", "v", 1.0)]
    return {
        f"{ours}_{i}": head(theirs, i) / scale
        for ours, theirs, scale in parts
        for i in range(HEADS)
    }


def test_exact_search_is_fuxictrs():
    theirs = shake(MultiHeadTargetAttention(WIDTH, HEADS * HEAD_DIM, HEADS, use_scale=True))
    weights = arrays(parameters(theirs))
    params = exact_search(weights, "", scale=HEAD_DIM**0.5)
    unit = ExactSearch(HEADS, HEAD_DIM, interval_dim=0, project_value=True)
    mask = np.arange(5)[None] < np.array([5, 1, 3, 4])[:, None]

    def ours(query, events):
        found = Events(events[:, None], jnp.asarray(mask)[:, None], None)
        heads = unit.apply({"params": params}, query[:, None], found)
        return jnp.concatenate(heads, axis=-1)[:, 0] @ weights["W_o.weight"].T

    assert_same_function(
        ours,
        lambda query, events: theirs(query, events, torch.tensor(mask)),
        *random_arrays((4, WIDTH), (4, 5, WIDTH)),
    )


def fuxi_sim(path):
    theirs = fuxi.model(
        FuxiSIM,
        path,
        dnn_hidden_units=[9, 6],
        attention_dim=HEADS * HEAD_DIM,
        num_heads=HEADS,
        topk=TOP_K,
        short_seq_len=2,
    )
    theirs.long_attention.scale = None  # It would be a part of W_q.
    return shake(theirs)


def older(batch):
    """Without the newest event, which is our short part."""
    history = {name: ids[:, :-1] for name, ids in batch["history"].items()}
    return {**batch, "history": history, "history_mask": batch["history_mask"][:, :-1]}


CONFIG = sim.Config(
    schema=SCHEMA,
    top_k=TOP_K,
    search_dim=HEADS * HEAD_DIM,
    heads=HEADS,
    head_dim=HEAD_DIM,
    interval_dim=0,
    project_value=True,
    short_length=1,
    tower_units=(9, 6),
    activation="relu",
)


def sim_variables(weights):
    """What the two models share."""
    return {
        "tables": fuxi.tables(weights),
        "params": {
            "w_a": weights["W_a.weight"].T,
            "w_b": weights["W_b.weight"].T,
            "search_tower": fuxi.tower(weights, "dnn_aux"),
            "exact": exact_search(weights, "long_attention."),
        },
    }


def searcher(batch):
    """Of variables: soft search's own logit (B, C), and what the heads find (B, C, heads * dim)."""
    fresh = sim.init(jax.random.key(0), CONFIG)

    def search(variables):
        both = {name: fresh[name] | variables.get(name, {}) for name in fresh}
        (_, logit), state = sim.SIM(CONFIG).apply(
            both,
            batch,
            train=True,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name == "exact",
        )
        return logit, jnp.concatenate(state["intermediates"]["exact"]["__call__"][0], axis=-1)

    return search


def test_soft_search_is_fuxictrs(tmp_path):
    """The logit that W_a and W_b learn from, with histories of all lengths, and its gradient."""
    theirs = fuxi_sim(tmp_path)
    batch = random_batch((6, 2, 4, 3))
    # Padding goes to the front, where the oldest events would be: the newest stands at the end.
    for name, ids in batch["history"].items():
        batch["history"][name] = ids[:, ::-1].copy()
    batch["history_mask"] = batch["history_mask"][:, ::-1].copy()
    search = searcher(batch)
    logit = theirs(fuxi.inputs(older(batch)))["y_aux"]
    assert_same_output(
        lambda variables: search(variables)[0], sim_variables, theirs, logit.reshape(-1, CANDIDATES)
    )


def test_both_searches_are_fuxictrs_without_padding(tmp_path):
    """From ids to what the heads find among the events found, and its gradient."""
    theirs = fuxi_sim(tmp_path)
    batch = random_batch((6, 6, 6, 6))
    search = searcher(batch)
    found = []
    theirs.long_attention.dot_attention.register_forward_hook(
        lambda module, inputs, output: found.append(output[0])
    )
    theirs(fuxi.inputs(older(batch)))
    assert_same_output(
        lambda variables: search(variables)[1],
        sim_variables,
        theirs,
        found[0].reshape(4, CANDIDATES, HEADS * HEAD_DIM),
    )
