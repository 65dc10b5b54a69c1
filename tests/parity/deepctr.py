"""`oracles.SCHEMA` and its batches as DeepCTR-Torch writes them."""

from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
import numpy as np
import torch

from parity.oracles import LENGTH, SCHEMA, dense, one_row_per_candidate


def columns(*, negatives=False):
    """Feature columns: a candidate's field "item" has its history in "hist_item".

    Models that pool the history add it up; those that attend do not look at the combiner.
    """
    sparse = [_sparse(field, field.name) for field in SCHEMA.role("user")]
    sparse += [_sparse(field, field.name) for field in SCHEMA.role("candidate")]
    prefixes = ("hist_", "neg_hist_") if negatives else ("hist_",)
    sequences = [
        VarLenSparseFeat(_sparse(field, prefix + field.name), LENGTH, "sum", length_name="length")
        for prefix in prefixes
        for field in SCHEMA.role("history")
    ]
    return sparse + sequences


def _sparse(field, name):
    table = SCHEMA.table(field.table_name)
    return SparseFeat(name, table.rows, table.dim, embedding_name=table.name)


def inputs(model, batch):
    """One matrix, a row per candidate, columns in the order of the model's features."""
    values = {
        {"history": "hist_", "history_negative": "neg_hist_"}.get(role, "") + name: rows
        for (role, name), rows in one_row_per_candidate(batch).items()
    }
    lengths = batch["history_mask"].sum(axis=1)
    values["length"] = np.repeat(lengths, len(values["item"]) // len(lengths))
    parts = [values[name].reshape(len(values["item"]), -1) for name in model.feature_index]
    return torch.tensor(np.concatenate(parts, axis=1), dtype=torch.float32)


def tables(weights):
    """Embeddings by the name of our table."""
    return {table.name: weights[f"embedding_dict.{table.name}.weight"] for table in SCHEMA.tables}


def layers(weights, name="dnn"):
    """A `DNN` as ours."""
    count = sum(key.startswith(f"{name}.linears.") for key in weights) // 2
    return {f"dense_{i}": dense(weights, f"{name}.linears.{i}") for i in range(count)}


def tower(weights, last, name="dnn"):
    """The layers of a `DNN` and the logit, whose bias stands in `out`."""
    return layers(weights, name) | {"logit": dense(weights, last) | {"bias": weights["out.bias"]}}
