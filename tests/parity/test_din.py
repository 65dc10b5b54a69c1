"""DIN and its parts against DeepCTR-Torch and FuxiCTR."""

import functools

from deepctr_torch.layers.activation import Dice as DeepCTRDice
from deepctr_torch.layers.sequence import AttentionSequencePoolingLayer
from deepctr_torch.models import DIN as DeepCTRDIN
from fuxictr.pytorch.layers import Dice as FuxiDice
from fuxictr.pytorch.layers import DIN_Attention
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from parity import deepctr
from parity.oracles import (
    SCHEMA,
    WIDTH,
    arrays,
    assert_same,
    assert_same_function,
    assert_same_model,
    dense,
    parameters,
    per_candidate,
    random_arrays,
    random_batch,
    shake,
)
from recjax.kernels.target_attention import Layer, Weights, moments, target_attention
from recjax.zoo import din
from recjax.zoo.layers.tower import Dice

LENGTHS = np.array([6, 1, 4, 3])
MASK = np.arange(6)[None] < LENGTHS[:, None]
UNITS = (8, 5)


def attention_unit(weights, hidden, last, *, alpha=None, statistics=None):
    """Ours from the names of the linear layers, of the slopes and of the running statistics."""
    layers = []
    for i, name in enumerate(hidden):
        linear = dense(weights, name)
        slope = None
        if alpha is not None:  # PyTorch's PReLU has one slope where ours has one per channel.
            slope = np.broadcast_to(np.ravel(weights[alpha[i]]), linear["bias"].shape)
        mean, variance = None, None
        if statistics is not None:
            mean = weights[f"{statistics[i]}.running_mean"]
            variance = weights[f"{statistics[i]}.running_var"]
        layers.append(Layer(linear["kernel"], linear["bias"], slope, mean, variance))
    linear = dense(weights, last)
    return arrays(Weights(tuple(layers), linear["kernel"][:, 0], linear["bias"][0]))


def no_affine(dice):
    """DeepCTR's Dice scales and shifts before the sigmoid; the paper's, and ours, does not."""
    with torch.no_grad():
        dice.bn.weight.fill_(1.0)
        dice.bn.bias.fill_(0.0)


@pytest.mark.parametrize("normalize", ["none", "softmax"])
@pytest.mark.parametrize("activation", ["sigmoid", "relu", "prelu", "dice"])
def test_attention_unit_is_deepctrs(activation, normalize):
    theirs = AttentionSequencePoolingLayer(
        att_hidden_units=UNITS,
        att_activation=activation,
        weight_normalization=normalize == "softmax",
        embedding_dim=WIDTH,
    )
    layers = shake(theirs).local_att.dnn.activation_layers
    if activation == "dice":
        for layer in layers:
            no_affine(layer)
    names = [f"local_att.dnn.activation_layers.{i}" for i in range(2)]
    weights = attention_unit(
        parameters(theirs),
        ["local_att.dnn.linears.0", "local_att.dnn.linears.1"],
        "local_att.dense",
        alpha={
            "prelu": [f"{name}.weight" for name in names],
            "dice": [f"{name}.alpha" for name in names],
        }.get(activation),
        statistics=[f"{name}.bn" for name in names] if activation == "dice" else None,
    )
    theirs.eval()
    assert_same_function(
        lambda query, keys: target_attention(
            query, keys, jnp.asarray(MASK), weights, activation=activation, normalize=normalize
        ),
        lambda query, keys: theirs(query, keys, torch.tensor(LENGTHS)[:, None]),
        *random_arrays((4, 1, WIDTH), (4, 6, WIDTH)),
    )


@pytest.mark.parametrize("normalize", ["none", "softmax"])
@pytest.mark.parametrize("activation", ["sigmoid", "relu", "prelu", "dice"])
def test_attention_unit_is_fuxictrs(activation, normalize):
    theirs = DIN_Attention(
        WIDTH, list(UNITS), hidden_activations=activation, use_softmax=normalize == "softmax"
    )
    shake(theirs).eval()
    weights = attention_unit(
        parameters(theirs),
        ["attention_layer.mlp.0", "attention_layer.mlp.2"],
        "attention_layer.mlp.4",
        alpha={
            "prelu": [f"attention_layer.mlp.{i}.weight" for i in (1, 3)],
            "dice": [f"attention_layer.mlp.{i}.alpha" for i in (1, 3)],
        }.get(activation),
        statistics=[f"attention_layer.mlp.{i}.bn" for i in (1, 3)]
        if activation == "dice"
        else None,
    )
    assert_same_function(
        lambda query, keys: target_attention(
            query[:, None],
            keys,
            jnp.asarray(MASK),
            weights,
            activation=activation,
            normalize=normalize,
        )[:, 0],
        lambda query, keys: theirs(query, keys, torch.tensor(MASK)),
        *random_arrays((4, WIDTH), (4, 6, WIDTH)),
    )


@pytest.mark.parametrize("padding", [False, True])
def test_attention_unit_in_training_is_fuxictrs(padding):
    """Dice with the statistics of the batch. FuxiCTR counts padding: ours can, but by default
    does not, so that without `stats_include_padding` only full histories compare."""
    theirs = shake(DIN_Attention(WIDTH, list(UNITS), hidden_activations="dice")).train()
    weights = attention_unit(
        parameters(theirs),
        ["attention_layer.mlp.0", "attention_layer.mlp.2"],
        "attention_layer.mlp.4",
        alpha=[f"attention_layer.mlp.{i}.alpha" for i in (1, 3)],
    )
    mask = jnp.asarray(MASK if padding else np.ones_like(MASK))
    query, keys = random_arrays((4, WIDTH), (4, 6, WIDTH))
    keys = np.where(mask[..., None], keys, 0)  # as padding rows read in both

    def ours(query, keys):
        query = query[:, None]
        statistics = moments(
            query, keys, mask, jnp.ones((4, 1), bool), weights, stats_include_padding=padding
        )
        layers = (
            layer._replace(mean=mean, variance=variance)
            for layer, (mean, variance) in zip(weights.layers, statistics, strict=True)
        )
        unit = weights._replace(layers=tuple(layers))
        return target_attention(query, keys, mask, unit, activation="dice", normalize="none")[:, 0]

    assert_same(
        ours(jnp.asarray(query), jnp.asarray(keys)),
        theirs(torch.tensor(query), torch.tensor(keys), torch.tensor(np.asarray(mask))).numpy(
            force=True
        ),
    )
    if not padding:  # The gradient for a padding row is theirs alone.
        full = torch.ones(4, 6)
        assert_same_function(ours, lambda q, k: theirs(q, k, full), query, keys)


def deepctr_dice(width):
    layer = shake(DeepCTRDice(width))
    no_affine(layer)
    layer.bn.momentum = 0.01
    return layer


def fuxi_dice(width):
    return shake(FuxiDice(width))


@pytest.mark.parametrize("library", [deepctr_dice, fuxi_dice])
@pytest.mark.parametrize("train", [False, True])
def test_dice_is_theirs(library, train):
    theirs = library(6).train(train)
    before = parameters(theirs)
    (x,) = random_arrays((10, 6))
    mask = jnp.ones((10,), bool)
    variables = {
        "params": {"alpha": jnp.asarray(before["alpha"])},
        "batch_stats": {
            "running": {
                "mean": jnp.asarray(before["bn.running_mean"]),
                "variance": jnp.asarray(before["bn.running_var"]),
            }
        },
    }
    ours = lambda x: Dice().apply(variables, x, mask, train, mutable=["batch_stats"])
    assert_same_function(lambda x: ours(x)[0], theirs, x)
    if train:
        after, running = parameters(theirs), ours(jnp.asarray(x))[1]["batch_stats"]["running"]
        assert_same(running["mean"], after["bn.running_mean"])
        # PyTorch normalises with the biased variance and remembers the unbiased one.
        new = (after["bn.running_var"] - 0.99 * before["bn.running_var"]) * (9 / 10)
        assert_same(running["variance"], 0.99 * before["bn.running_var"] + new)


def din_variables(weights, *, softmax, dice=False):
    """DeepCTR's DIN as ours."""
    attention, statistics = {}, {}
    for i in range(len(UNITS)):
        linear = dense(weights, f"attention.local_att.dnn.linears.{i}")
        attention |= {f"kernel_{i}": linear["kernel"], f"bias_{i}": linear["bias"]}
        if dice:
            layer = f"attention.local_att.dnn.activation_layers.{i}"
            attention[f"alpha_{i}"] = weights[f"{layer}.alpha"][:, 0]
            statistics[f"running_{i}"] = {
                "mean": weights[f"{layer}.bn.running_mean"],
                "variance": weights[f"{layer}.bn.running_var"],
            }
    last = dense(weights, "attention.local_att.dense")
    attention["out_kernel"] = last["kernel"]
    if not softmax:
        attention["out_bias"] = last["bias"][0]
    return {
        "tables": deepctr.tables(weights),
        "params": {"attention": attention, "tower": deepctr.tower(weights, "dnn_linear")},
        "batch_stats": {"attention": statistics} if dice else {},
    }


@pytest.mark.parametrize("normalize", ["none", "softmax"])
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_din_is_deepctrs(activation, normalize):
    """Logits, the loss, and its gradient for every weight and table."""
    softmax = normalize == "softmax"
    theirs = DeepCTRDIN(
        deepctr.columns(),
        ["item", "category"],
        dnn_hidden_units=(9, 6),
        att_hidden_size=UNITS,
        att_activation=activation,
        att_weight_normalization=softmax,
        task="regression",  # a logit instead of its sigmoid
    )
    shake(theirs)
    config = din.Config(
        schema=SCHEMA,
        attention_units=UNITS,
        attention_activation=activation,
        normalize=normalize,
        tower_units=(9, 6),
        activation="relu",
    )
    # Without events DeepCTR's softmax takes the mean of padding, ours nothing.
    batch = random_batch((6, 1, 4, 3) if softmax else (6, 0, 4, 3))
    mapped = functools.partial(din_variables, softmax=softmax)
    logit = theirs(deepctr.inputs(theirs, batch))
    assert_same_model(din, config, batch, mapped, theirs, logit)


def test_din_with_dice_is_deepctrs_when_serving():
    theirs = DeepCTRDIN(
        deepctr.columns(),
        ["item", "category"],
        dnn_hidden_units=(9, 6),
        att_hidden_size=UNITS,
        att_activation="dice",
        task="regression",
    )
    shake(theirs).eval()
    for layer in theirs.attention.local_att.dnn.activation_layers:
        no_affine(layer)
    config = din.Config(
        schema=SCHEMA,
        attention_units=UNITS,
        attention_activation="dice",
        tower_units=(9, 6),
        activation="relu",
    )
    variables = arrays(din_variables(parameters(theirs), softmax=False, dice=True))
    batch = random_batch((6, 0, 4, 3))
    logit = per_candidate(theirs(deepctr.inputs(theirs, batch)))
    assert_same(din.apply(variables, config, batch).logit, logit)
