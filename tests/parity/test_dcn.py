"""Cross networks and DCN against DeepCTR-Torch and FuxiCTR.

Torch-RecHub's second version adds the bias outside the product and is no oracle.
"""

from deepctr_torch.layers.interaction import CrossNet as DeepCTRCrossNet
from deepctr_torch.layers.interaction import CrossNetMix as DeepCTRCrossNetMix
from deepctr_torch.models import DCN as DeepCTRDCN
from deepctr_torch.models import DCNMix as DeepCTRDCNMix
from fuxictr.pytorch.layers import CrossNet, CrossNetMix, CrossNetV2
import numpy as np
import pytest

from parity import deepctr
from parity.oracles import (
    SCHEMA,
    arrays,
    assert_same_function,
    assert_same_model,
    dense,
    parameters,
    random_arrays,
    random_batch,
    shake,
)
from recjax.zoo import dcn

LAYERS, EXPERTS, RANK = 3, 4, 2
# The libraries fix gate and nonlinearity, and share the gates between the layers.
MIXTURE = {"cross": "mixture", "experts": EXPERTS, "rank": RANK, "gate": "softmax", "g": "tanh"}


def fuxi_v1(weights):
    result = {}
    for i in range(LAYERS):
        result[f"w_{i}"] = dense(weights, f"cross_net.{i}.weight")["kernel"]
        result[f"b_{i}"] = weights[f"cross_net.{i}.bias"]
    return result


def fuxi_v2(weights):
    result = {}
    for i in range(LAYERS):
        result[f"w_{i}"] = weights[f"cross_layers.{i}.weight"]  # W x in both
        result[f"b_{i}"] = weights[f"cross_layers.{i}.bias"]
    return result


def fuxi_mix(weights):
    result = gates(weights)
    for i in range(LAYERS):
        for name in "uvc":
            result[f"{name}_{i}"] = weights[f"{name.upper()}_list.{i}"]
        result[f"b_{i}"] = weights[f"bias.{i}"][:, 0]
    return result


def gates(weights):
    rows = [dense(weights, f"gating.{i}")["kernel"] for i in range(EXPERTS)]
    return {"gate": np.concatenate(rows, axis=1)}


def deepctr_cross(weights):
    result = {}
    for i in range(LAYERS):
        result[f"w_{i}"] = weights["kernels"][i]
        result[f"b_{i}"] = weights["bias"][i, :, 0]
    return result


def deepctr_mix(weights):
    result = gates(weights)
    for i in range(LAYERS):
        for name in "uvc":
            result[f"{name}_{i}"] = weights[f"{name.upper()}_list"][i]
        result[f"b_{i}"] = weights["bias"][i, :, 0]
    return result


@pytest.mark.parametrize(
    "library, mapped, options",
    [
        pytest.param(lambda width: CrossNet(width, LAYERS), fuxi_v1, {"cross": "v1"}, id="fuxi-v1"),
        pytest.param(
            lambda width: CrossNetV2(width, LAYERS), fuxi_v2, {"cross": "full"}, id="fuxi-v2"
        ),
        pytest.param(
            lambda width: CrossNetMix(width, LAYERS, RANK, EXPERTS),
            fuxi_mix,
            MIXTURE,
            id="fuxi-mix",
        ),
        pytest.param(
            lambda width: DeepCTRCrossNet(width, LAYERS, "vector"),
            deepctr_cross,
            {"cross": "v1"},
            id="deepctr-v1",
        ),
        pytest.param(
            lambda width: DeepCTRCrossNet(width, LAYERS, "matrix"),
            deepctr_cross,
            {"cross": "full"},
            id="deepctr-v2",
        ),
        pytest.param(
            lambda width: DeepCTRCrossNetMix(width, RANK, EXPERTS, LAYERS),
            deepctr_mix,
            MIXTURE,
            id="deepctr-mix",
        ),
    ],
)
def test_cross_network_is_theirs(library, mapped, options):
    width = 6
    theirs = shake(library(width))
    network = dcn.CrossNetwork(dcn.Config(schema=SCHEMA, cross_layers=LAYERS, **options))
    params = arrays(mapped(parameters(theirs)))
    assert_same_function(
        lambda x: network.apply({"params": params}, x[:, None])[:, 0],
        theirs,
        *random_arrays((5, width)),  # FuxiCTR's mixture loses the axis of a batch of one
    )


@pytest.mark.parametrize("cross", ["v1", "full", "mixture"])
def test_dcn_is_deepctrs(cross):
    """Logits, the loss, and its gradient for every weight and table."""
    kind = {
        "v1": lambda **options: DeepCTRDCN(cross_parameterization="vector", **options),
        "full": lambda **options: DeepCTRDCN(cross_parameterization="matrix", **options),
        "mixture": lambda **options: DeepCTRDCNMix(low_rank=RANK, num_experts=EXPERTS, **options),
    }[cross]
    theirs = kind(
        linear_feature_columns=[],
        dnn_feature_columns=deepctr.columns(),
        cross_num=LAYERS,
        dnn_hidden_units=(9, 6),
        task="regression",  # a logit instead of its sigmoid
    )
    shake(theirs)
    options = MIXTURE if cross == "mixture" else {"cross": cross}
    config = dcn.Config(schema=SCHEMA, cross_layers=LAYERS, tower_units=(9, 6), **options)

    def mapped(weights):
        start = "crossnet."
        own = {name[len(start) :]: x for name, x in weights.items() if name.startswith(start)}
        return {
            "tables": deepctr.tables(weights),
            "params": {
                "cross": (deepctr_mix if cross == "mixture" else deepctr_cross)(own),
                "deep": deepctr.layers(weights),
                "logit": dense(weights, "dnn_linear") | {"bias": weights["out.bias"]},
            },
            "batch_stats": {},
        }

    batch = random_batch((6, 0, 4, 3))
    logit = theirs(deepctr.inputs(theirs, batch))
    assert_same_model(dcn, config, batch, mapped, theirs, logit)
