"""The peers of suite `training`: DeepCTR-Torch's DIN and DIEN, trained as its `fit` does.

They get our batches, a row per labelled candidate, each with its own copy of the history: the same
candidates, histories, negatives and labels, so as many distinct ids. As in `fit`: Adam over
everything, on gradients as large as the tables; the sum of binary cross-entropies. Not in the time:
batches (tensors are ready), and metrics of the training batches, which `fit` adds up by default.

L2 of the embeddings (1e-6 by default, another pass over the tables) is off, as in ours. What
differs: their activations are their defaults, ReLU in the tower and Dice in DIN's unit, ours PReLU;
ours takes the mean of the losses, clips the gradient's norm, and updates the rows of a batch alone
(lazy Adam). Dice, which normalises every layer over the batch, is a large part of DIN's time there.
"""

from collections.abc import Iterator
import itertools
import time
from typing import Any

from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
from deepctr_torch.models import DIEN, DIN
import numpy as np
import torch

from ...train.data.batches.assembly import Step
from ...zoo.features import Schema

_PREFIX = {"history": "hist_", "history_negative": "neg_hist_"}


def step_times(
    name: str, config: Any, batches: Iterator[Step], steps: int, activation: str = ""
) -> list[float]:
    """Seconds of each of `steps` steps from ready tensors on, after as many to warm up.

    Args:
      name: of our model, "din" or "dien".
      config: of our model; the peer's sizes are the same.
      batches: of our pipeline.
      steps: how many to time.
      activation: of DIN's attention; the peer's default, Dice, if empty.
    """
    times, model, optimizer = [], None, None
    for batch, pulled in itertools.islice(batches, 2 * steps):
        if model is None:
            model = model_of(name, config, batch, activation).train()
            optimizer = torch.optim.Adam(model.parameters())
        inputs = torch.tensor(rows(model, config.schema, batch, pulled), dtype=torch.float32)
        label = torch.tensor(batch["label"]["click"].reshape(-1))
        started = time.perf_counter()
        score = model(inputs).squeeze(-1)
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy(score, label, reduction="sum")
        (loss + model.aux_loss).backward()
        optimizer.step()
        times.append(time.perf_counter() - started)
    return times[steps:]


def model_of(name: str, config: Any, batch: dict[str, Any], activation: str = "") -> Any:
    """The peer of our model, of the same sizes, for batches like this one."""
    history, negatives = batch["history_mask"].shape[1], "history_negative" in batch

    def column(field: str, prefix: str = "") -> Any:
        table = config.schema.table(field)
        return SparseFeat(prefix + field, table.rows, table.dim, embedding_name=field)

    fields = [field.name for field in config.schema.item_fields]
    prefixes = list(_PREFIX.values())[: 2 if negatives else 1]
    columns = [column(field) for field in fields] + [
        VarLenSparseFeat(column(field, prefix), history, length_name="length")
        for prefix in prefixes
        for field in fields
    ]
    options = {"dnn_hidden_units": config.tower_units, "l2_reg_embedding": 0}
    if activation:
        options["att_activation"] = activation
    if name == "din":
        return DIN(columns, fields, att_hidden_size=config.attention_units, **options)
    return DIEN(
        columns,
        fields,
        gru_type="AUGRU",
        use_negsampling=negatives,
        att_hidden_units=config.attention_units,
        **options,
    )


def rows(model: Any, schema: Schema, batch: dict[str, Any], pulled: Any) -> np.ndarray:
    """One row per candidate, columns in the order of the model's features."""
    requests, candidates = batch["candidate_mask"].shape
    values = {"length": batch["history_mask"].sum(axis=1)}
    for role, prefix in _PREFIX.items():
        for field in schema.item_fields if role in batch else ():
            values[prefix + field.name] = pulled.rows[field.table_name][batch[role][field.name]]
    values = {name: np.repeat(value, candidates, axis=0) for name, value in values.items()}
    for field in schema.item_fields:
        values[field.name] = pulled.rows[field.table_name][batch["candidate"][field.name]]
    size = requests * candidates
    return np.concatenate([values[name].reshape(size, -1) for name in model.feature_index], axis=1)
