"""`oracles.SCHEMA` and its batches as FuxiCTR and LongCTR, which comes with it, write them."""

from fuxictr.features import FeatureMap
import numpy as np
import torch

from parity.oracles import CANDIDATES, SCHEMA, dense, one_row_per_candidate


def model(kind, path, **options):
    """A model of LongCTR; its checkpoints would go under `path`."""
    features = FeatureMap("parity", str(path))
    for field in (*SCHEMA.role("user"), *SCHEMA.role("candidate")):
        table = SCHEMA.table(field.table_name)
        features.features[field.name] = {
            "type": "categorical",
            "source": "item" if field.role == "candidate" else "user",
            "vocab_size": table.rows,
            "embedding_dim": table.dim,
            "padding_idx": 0,
        }
    return kind(
        features,
        task="regression",  # logits instead of their sigmoids
        optimizer="adam",
        loss="binary_crossentropy",
        metrics=["AUC"],
        model_root=str(path),
        verbose=0,
        **options,
    )


def inputs(batch):
    """(features, items of history and candidate, mask); the candidate is the last of the items."""
    rows = one_row_per_candidate(batch)
    items = {
        name: np.concatenate([rows["history", name], rows["candidate", name][:, None]], axis=1)
        for name in batch["candidate"]
    }
    return (
        {name: torch.tensor(rows["user", name]) for name in batch["user"]},
        {name: torch.tensor(value.ravel()) for name, value in items.items()},
        torch.tensor(np.repeat(batch["history_mask"], CANDIDATES, axis=0)),
    )


def tables(weights):
    """Embeddings by the name of our table; the libraries' padding rows are zero as well."""
    layers = "embedding_layer.embedding_layer.embedding_layers"
    return {table.name: weights[f"{layers}.{table.name}.weight"] for table in SCHEMA.tables}


def tower(weights, name):
    """An `MLP_Block` that ends in a logit as our Tower."""
    found = [key.split(".")[-2] for key in weights if key.startswith(f"{name}.mlp.")]
    *hidden, last = sorted({int(number) for number in found})
    layers = {f"dense_{i}": dense(weights, f"{name}.mlp.{n}") for i, n in enumerate(hidden)}
    return layers | {"logit": dense(weights, f"{name}.mlp.{last}")}
