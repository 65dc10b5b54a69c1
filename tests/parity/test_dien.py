"""Recurrent cells and DIEN against PyTorch, DeepCTR-Torch, FuxiCTR and Torch-RecHub.

They follow the paper, (1 - a u) h + a u n; the authors' code, which does not, is none of them.
"""

import functools
import types

from deepctr_torch.layers import sequence as deepctr_cells
from deepctr_torch.models import DIEN as DeepCTRDIEN
import jax.numpy as jnp
from model_zoo.LongCTR.DIEN.DIEN import DIEN as FuxiDIEN
from model_zoo.LongCTR.DIEN.DIEN import AGRUCell as FuxiAGRUCell
from model_zoo.LongCTR.DIEN.DIEN import AUGRUCell as FuxiAUGRUCell
from model_zoo.LongCTR.DIEN.DIEN import DynamicGRU as FuxiDynamicGRU
import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch_rechub.models.ranking import dien as rechub_cells

from parity import deepctr, fuxi
from parity.oracles import (
    SCHEMA,
    WIDTH,
    arrays,
    assert_same_function,
    assert_same_model,
    dense,
    parameters,
    random_arrays,
    random_batch,
    shake,
)
from recjax.kernels.augru import Weights, augru, gru
from recjax.kernels.augru.reference import cell_step
from recjax.zoo import dien

UNITS = 5  # of inputs as well: Torch-RecHub knows one width only
LENGTHS = np.array([6, 1, 4, 3])
MASK = np.arange(6)[None] < LENGTHS[:, None]


def one_bias(module):
    """The module with one bias per gate, as in the paper and in ours: no recurrent biases.

    In DeepCTR's AUGRUCell both are one tensor by mistake; after this they are two.
    """
    for cell in module.modules():
        for name, bias in list(cell.named_parameters(recurse=False, remove_duplicate=False)):
            if name.startswith("bias_ih"):
                setattr(cell, name, torch.nn.Parameter(bias.detach().clone()))
            elif name.startswith("bias_hh"):
                setattr(cell, name, none_of(bias))
        if hasattr(cell, "h2h"):
            cell.h2h.bias = none_of(cell.h2h.bias)
    return module


def none_of(bias):
    return torch.nn.Parameter(torch.zeros_like(bias), requires_grad=False)


def cell_weights(weights, order, names=("weight_ih", "weight_hh", "bias_ih")):
    """Ours, blocks [update, reset, new], from rows in blocks of another order.

    A block "z" is a gate that says how much to keep, 1 - u: it is negated. "_" is not used.
    """

    def reordered(rows):
        blocks = dict(zip(order, np.split(rows, 3), strict=True))
        if "z" in blocks:
            blocks["u"] = -blocks["z"]
        return np.concatenate([blocks[gate] for gate in "urn" if gate in blocks])

    matrix, recurrent, bias = (reordered(weights[name]) for name in names)
    return Weights(matrix.T, recurrent.T, bias)


def rechub_weights(weights):
    blocks = lambda name: np.concatenate([weights[name + gate] for gate in "urh"], axis=1)
    return Weights(blocks("W"), blocks("U"), blocks("b")[0])


def fuxi_weights(order, prefix=""):
    names = [prefix + name for name in ("x2h.weight", "h2h.weight", "x2h.bias")]
    return lambda weights: cell_weights(weights, order, names)


def deepctr_weights(order, prefix=""):
    names = [prefix + name for name in ("weight_ih", "weight_hh", "bias_ih")]
    return lambda weights: cell_weights(weights, order, names)


@pytest.mark.parametrize(
    "cell, library, mapped",
    [
        ("augru", deepctr_cells.AUGRUCell, deepctr_weights("run")),
        ("agru", deepctr_cells.AGRUCell, deepctr_weights("r_n")),
        ("augru", FuxiAUGRUCell, fuxi_weights("urn")),
        ("agru", FuxiAGRUCell, fuxi_weights("_rn")),
        ("augru", rechub_cells.AUGRU_Cell, rechub_weights),
    ],
    ids=["deepctr-augru", "deepctr-agru", "fuxi-augru", "fuxi-agru", "rechub-augru"],
)
def test_one_step_is_theirs(cell, library, mapped):
    rechub = library is rechub_cells.AUGRU_Cell
    theirs = one_bias(shake(library(*[UNITS] if rechub else [UNITS, UNITS])))
    weights = arrays(mapped(parameters(theirs)))
    attention = np.array([0.0, 1.0, 0.3, 0.02], np.float32)
    assert_same_function(
        lambda h, x, a: cell_step(h[:, None], x, a[:, None], weights, cell)[:, 0],
        lambda h, x, a: theirs(x, h, a[:, None] if rechub else a),
        *random_arrays((4, UNITS), (4, UNITS)),
        attention,
        tolerance=1e-6,
    )


def test_one_step_with_all_attention_is_pytorchs():
    """Whose update gate says how much to keep."""
    theirs = one_bias(shake(torch.nn.GRUCell(UNITS, UNITS)))
    weights = arrays(deepctr_weights("rzn")(parameters(theirs)))
    assert_same_function(
        lambda h, x: cell_step(h[:, None], x, jnp.ones((4, 1)), weights, "augru")[:, 0],
        lambda h, x: theirs(x, h),
        *random_arrays((4, UNITS), (4, UNITS)),
        tolerance=1e-6,
    )


def packed(values):
    return pack_padded_sequence(values, LENGTHS, batch_first=True, enforce_sorted=False)


def unpacked(values):
    return pad_packed_sequence(values, batch_first=True, total_length=MASK.shape[1])[0]


@pytest.mark.parametrize("library", ["deepctr", "fuxi"])
@pytest.mark.parametrize("cell", ["augru", "agru"])
def test_a_sequence_is_theirs(library, cell):
    rows = torch.arange(len(LENGTHS))
    if library == "deepctr":
        theirs = deepctr_cells.DynamicGRU(UNITS, UNITS, gru_type=cell.upper())
        mapped = deepctr_weights("run" if cell == "augru" else "r_n", "rnn.")
        last = lambda states, a: unpacked(theirs(packed(states), packed(a)))[rows, LENGTHS - 1]
    else:
        theirs = FuxiDynamicGRU(UNITS, UNITS, gru_type=cell.upper())
        mapped = fuxi_weights("urn" if cell == "augru" else "_rn", "gru_cell.")
        last = lambda states, a: theirs(packed(states), packed(a))[1]
    one_bias(shake(theirs))
    weights = arrays(mapped(parameters(theirs)))
    (states,) = random_arrays((4, 6, UNITS))
    attention = np.random.default_rng(1).random((4, 6)).astype(np.float32)
    assert_same_function(
        lambda states, a: augru(states, a[:, None], jnp.asarray(MASK), weights, cell=cell)[:, 0],
        last,
        states,
        attention,
        tolerance=1e-6,
    )


def test_the_extractor_is_pytorchs_gru():
    theirs = one_bias(shake(torch.nn.GRU(UNITS, UNITS, batch_first=True)))
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0")
    weights = arrays(cell_weights(parameters(theirs), "rzn", names))
    mask = jnp.asarray(MASK)
    assert_same_function(  # After the end theirs are zeros, ours repeat the last state.
        lambda inputs: gru(inputs, mask, weights) * mask[..., None].astype(jnp.float32),
        lambda inputs: unpacked(theirs(packed(inputs))[0]),
        *random_arrays((4, 6, UNITS)),
        tolerance=1e-6,
    )


def test_aigru_is_pytorchs_gru_of_weighted_inputs():
    theirs = one_bias(shake(torch.nn.GRU(UNITS, UNITS, batch_first=True)))
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0")
    weights = arrays(cell_weights(parameters(theirs), "rzn", names))
    (states,) = random_arrays((4, 6, UNITS))
    attention = np.random.default_rng(1).random((4, 6)).astype(np.float32)
    assert_same_function(
        lambda states, a: augru(states, a[:, None], jnp.asarray(MASK), weights, cell="aigru")[:, 0],
        lambda states, a: theirs(packed(states * a[..., None]))[1][0],
        states,
        attention,
        tolerance=1e-6,
    )


def recurrence(weights):
    return {"input": weights.input, "recurrent": weights.recurrent, "bias": weights.bias}


def extractor(weights, name):
    names = [f"{name}.{part}_l0" for part in ("weight_ih", "weight_hh", "bias_ih")]
    return recurrence(cell_weights(weights, "rzn", names))


def without_projection(variables):
    """Ours projects the candidate before the activation unit; the libraries do not."""
    same = {"kernel": jnp.eye(WIDTH), "bias": jnp.zeros(WIDTH)}
    params = {"query": {"dense": same, "alpha": jnp.ones(WIDTH)}}
    return {**variables, "params": variables["params"] | params}


def moved(kernel, order, widths):
    """The rows of a first layer, whose inputs of these widths we put into another order."""
    blocks = np.split(kernel, np.cumsum(widths)[:-1])
    return np.concatenate([blocks[i] for i in order])


def deepctr_variables(weights, gru_type):
    unit = "interest_evolution.attention.local_att"
    attention = {}
    for i in range(2):
        linear = dense(weights, f"{unit}.dnn.linears.{i}")
        attention |= {f"kernel_{i}": linear["kernel"], f"bias_{i}": linear["bias"]}
    attention["out_kernel"] = dense(weights, f"{unit}.dense")["kernel"]
    second = "interest_evolution.interest_evolution"
    if gru_type in ("AUGRU", "AGRU"):
        order = "run" if gru_type == "AUGRU" else "r_n"
        evolution = recurrence(deepctr_weights(order, f"{second}.rnn.")(weights))
    else:
        evolution = extractor(weights, second)
    tower = deepctr.tower(weights, "linear")
    # Theirs [h', user, q], ours [user, q, h'].
    tower["dense_0"]["kernel"] = moved(tower["dense_0"]["kernel"], (1, 2, 0), (WIDTH, 5, WIDTH))
    params = {
        "extractor": extractor(weights, "interest_extractor.gru"),
        "attention": attention,
        "evolution": evolution,
        "tower": tower,
    }
    if "interest_extractor.auxiliary_net.linears.0.weight" in weights:
        net = deepctr.layers(weights, "interest_extractor.auxiliary_net")
        net["logit"] = net.pop("dense_2")  # a probability in theirs
        params["next_behaviour"] = net
    return {"tables": deepctr.tables(weights), "params": params, "batch_stats": {}}


@pytest.mark.parametrize(
    "gru_type, auxiliary",
    [("AUGRU", False), ("AUGRU", True), ("AGRU", False), ("AIGRU", False), ("GRU", True)],
)
def test_dien_is_deepctrs(gru_type, auxiliary):
    """Logits, both losses, and their gradient for every weight and table."""
    alpha = 1.7
    theirs = DeepCTRDIEN(
        deepctr.columns(negatives=auxiliary),
        ["item", "category"],
        gru_type=gru_type,
        use_negsampling=auxiliary,
        alpha=alpha,
        dnn_hidden_units=(9, 6),
        att_hidden_units=(8, 5),
        att_activation="sigmoid",
        task="regression",  # a logit instead of its sigmoid
    )
    one_bias(shake(theirs))
    config = dien.Config(
        schema=SCHEMA,
        evolution=gru_type.lower(),
        attention_units=(8, 5),
        attention_activation="sigmoid",
        # They average over positives and negatives together: half of our sum of two means.
        auxiliary_weight=alpha / 2 if auxiliary else 0.0,
        tower_units=(9, 6),
        activation="relu",
    )
    batch = random_batch((6, 0, 4, 1), history_negatives=auxiliary)
    model = types.SimpleNamespace(
        apply=lambda variables, *rest: dien.apply(without_projection(variables), *rest),
        loss=lambda variables, *rest, key: dien.loss(without_projection(variables), *rest, key=key),
    )
    logit = theirs(deepctr.inputs(theirs, batch))
    assert_same_model(
        model,
        config,
        batch,
        lambda weights: deepctr_variables(weights, gru_type),
        theirs,
        logit,
        more=theirs.aux_loss.sum(),
    )


def fuxi_variables(weights, *, attention, cell, pooled):
    order = "urn" if cell == "augru" else "_rn"
    tower = fuxi.tower(weights, "dnn")
    # Theirs [user, q, h', sum, q * sum], ours [user, q, sum, h', q * sum].
    order_of_inputs = (0, 1, 3, 2, 4) if pooled else (0, 1, 2)
    widths = (5, *[WIDTH] * (len(order_of_inputs) - 1))
    tower["dense_0"]["kernel"] = moved(tower["dense_0"]["kernel"], order_of_inputs, widths)
    params = {
        "extractor": extractor(weights, "extraction_modules.0"),
        "evolution": recurrence(fuxi_weights(order, "evolving_modules.0.gru_cell.")(weights)),
        "tower": tower,
    }
    if attention == "bilinear":
        params["query"] = {"kernel": weights["attention_modules.0.W_kernel"].T}
    else:
        first, second, last = (
            dense(weights, f"attention_modules.0.attn_mlp.mlp.{i}") for i in (0, 2, 4)
        )
        params["attention"] = {
            "kernel_0": first["kernel"],
            "bias_0": first["bias"],
            "kernel_1": second["kernel"],
            "bias_1": second["bias"],
            "out_kernel": last["kernel"],
        }
    return {"tables": fuxi.tables(weights), "params": params, "batch_stats": {}}


@pytest.mark.parametrize("cell", ["augru", "agru"])
@pytest.mark.parametrize("attention, pooled", [("bilinear", True), ("mlp", False)])
def test_dien_is_fuxictrs(tmp_path, attention, pooled, cell):
    """LongCTR's, which has no auxiliary loss."""
    theirs = fuxi.model(
        FuxiDIEN,
        tmp_path,
        dnn_hidden_units=[9, 6],
        batch_norm=False,
        gru_type=cell.upper(),
        enable_sum_pooling=pooled,
        attention_type={"bilinear": "bilinear_attention", "mlp": "din_attention"}[attention],
        attention_hidden_units=[8, 5],
        attention_activation="ReLU",
    )
    one_bias(shake(theirs))
    config = dien.Config(
        schema=SCHEMA,
        evolution=cell,
        attention=attention,
        attention_units=(8, 5),
        attention_activation="relu",
        auxiliary_weight=0.0,
        tower_units=(9, 6),
        activation="relu",
        product=pooled,
    )
    batch = random_batch((6, 0, 4, 1))
    complete = without_projection if attention == "mlp" else lambda variables: variables
    model = types.SimpleNamespace(
        apply=lambda variables, *rest: dien.apply(complete(variables), *rest),
        loss=lambda variables, *rest, key: dien.loss(complete(variables), *rest, key=key),
    )
    logit = theirs(fuxi.inputs(batch))["y_pred"]
    mapped = functools.partial(fuxi_variables, attention=attention, cell=cell, pooled=pooled)
    assert_same_model(model, config, batch, mapped, theirs, logit)
