"""ESMM against DeepCTR-Torch and Torch-RecHub."""

import dataclasses

from deepctr_torch.models import ESMM as DeepCTRESMM
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.multi_task import ESMM as RecHubESMM

from parity import deepctr
from parity.oracles import (
    SCHEMA,
    arrays,
    assert_same,
    gradients,
    loss_and_gradient,
    one_row_per_candidate,
    parameters,
    per_candidate,
    random_batch,
    shake,
    training_loss,
)
from recjax.zoo import esmm
from recjax.zoo.features import Field, Schema, Table

TASKS = ("click", "conversion")
entropy = torch.nn.functional.binary_cross_entropy


def column(batch, task):
    """The label of each row."""
    return torch.tensor(batch["label"][task]).flatten()


def labelled(batch):
    """The conversion column only holds purchases of what was clicked, as the libraries need it."""
    label = batch["label"]
    return {**batch, "label": label | {"conversion": label["click"] * label["conversion"]}}


def test_esmm_is_deepctrs():
    """Both probabilities, the loss, and its gradient for every weight and table."""
    schema = dataclasses.replace(SCHEMA, tasks=TASKS)
    theirs = DeepCTRESMM(deepctr.columns(), tower_dnn_hidden_units=(9, 6), task_names=("y", "yz"))
    shake(theirs)
    config = esmm.Config(schema=schema, tower_units=(9, 6))
    batch = labelled(random_batch((6, 0, 4, 3), schema=schema))

    def mapped(weights):
        towers = {"click": "ctr_dnn", "conversion": "cvr_dnn"}
        return {
            "tables": deepctr.tables(weights),
            "params": {
                task: deepctr.tower(weights, f"{name}_final_layer", name)
                for task, name in towers.items()
            },
            "batch_stats": {},
        }

    output = theirs(deepctr.inputs(theirs, batch))
    variables = arrays(mapped(parameters(theirs)))
    ours = esmm.apply(variables, config, batch)
    for i, task in enumerate(TASKS):
        expected = per_candidate(output[:, i])
        assert_same(jax.nn.sigmoid(ours.tasks[task]), expected)
        assert_same(jnp.exp(ours.log_probabilities[task]), expected)
    cost = sum(entropy(output[:, i], column(batch, task)) for i, task in enumerate(TASKS))
    value, gradient = loss_and_gradient(training_loss(esmm, config, batch), variables)
    assert_same(value, cost.numpy(force=True))
    cost.backward()
    expected = mapped(gradients(theirs))
    # Their two logits share one bias: its gradient is the sum of ours.
    towers = [tree["params"][task]["logit"] for tree in (gradient, expected) for task in TASKS]
    click, conversion, shared, _ = (logit.pop("bias") for logit in towers)
    assert_same(click + conversion, shared)
    assert_same(gradient, {name: expected[name] for name in gradient})


def test_esmm_is_rechubs_when_serving():
    """Its towers have BatchNorm, which at inference is a part of the layer before it."""
    schema = Schema(
        tables=(Table(name="user", rows=11, dim=5), Table(name="item", rows=30, dim=4)),
        fields=(Field(name="user", role="user"), Field(name="item", role="candidate")),
        tasks=TASKS,
    )
    user, item = (SparseFeature(t.name, t.rows, embed_dim=t.dim) for t in schema.tables)
    theirs = RecHubESMM([user], [item], {"dims": [9, 6]}, {"dims": [9, 6]})
    weights = parameters(shake(theirs).eval())

    def tower(name):
        layers = {}
        for i in range(2):
            linear, norm = f"{name}.mlp.{4 * i}", f"{name}.mlp.{4 * i + 1}"
            scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + 1e-5)
            centred = weights[f"{linear}.bias"] - weights[f"{norm}.running_mean"]
            layers[f"dense_{i}"] = {
                "kernel": weights[f"{linear}.weight"].T * scale,
                "bias": centred * scale + weights[f"{norm}.bias"],
            }
        last = {"kernel": weights[f"{name}.mlp.8.weight"].T, "bias": weights[f"{name}.mlp.8.bias"]}
        return layers | {"logit": last}

    variables = {
        "tables": {
            table.name: weights[f"embedding.embed_dict.{table.name}.weight"]
            for table in schema.tables
        },
        "params": {"click": tower("tower_ctr"), "conversion": tower("tower_cvr")},
        "batch_stats": {},
    }
    variables = arrays(variables)
    batch = labelled(random_batch(schema=schema))
    rows = {name: torch.tensor(x) for (_, name), x in one_row_per_candidate(batch).items()}
    output = theirs(rows)
    config = esmm.Config(schema=schema, tower_units=(9, 6))
    ours = esmm.apply(variables, config, batch).log_probabilities
    for i, name in enumerate(("conversion_given_click", "click", "conversion")):
        assert_same(jnp.exp(ours[name]), per_candidate(output[:, i]))
    cost = sum(entropy(output[:, i], column(batch, task)) for i, task in enumerate(TASKS, 1))
    loss, _ = loss_and_gradient(training_loss(esmm, config, batch), variables)
    assert_same(loss, cost.numpy(force=True))
