"""The peer of suite `training`: DeepCTR-Torch's DIEN, trained as its `fit` does."""

import time
from typing import Any

from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
from deepctr_torch.models import DIEN
import numpy as np
import torch


def step_times(case: Any, items: int, steps: int) -> list[float]:
    """Seconds of each of `steps` steps from ready tensors on, after as many to warm up."""
    options, dim = dict(case.options), 16
    auxiliary = options.get("auxiliary_weight", 1.0) > 0
    sizes = {"item": items, "category": 1002}
    column = lambda name, prefix="": SparseFeat(
        prefix + name, sizes[name], dim, embedding_name=name
    )
    prefixes = ("hist_", "neg_hist_") if auxiliary else ("hist_",)
    features = [column(name) for name in sizes] + [
        VarLenSparseFeat(column(name, prefix), case.history, length_name="length")
        for prefix in prefixes
        for name in sizes
    ]
    model = DIEN(
        features,
        list(sizes),
        gru_type="AUGRU",
        use_negsampling=auxiliary,
        att_hidden_units=options["attention_units"],
        dnn_hidden_units=options["tower_units"],
        l2_reg_embedding=0,
    ).train()
    optimizer = torch.optim.Adam(model.parameters())
    rng = np.random.default_rng(0)
    times = []
    for _ in range(2 * steps):
        parts = []
        for name, (start, stop) in model.feature_index.items():
            shape = (case.batch_size, stop - start)
            field = name.removeprefix("neg_").removeprefix("hist_")
            ids = rng.integers(1, sizes[field], shape) if field in sizes else None
            parts.append(np.full(shape, case.history) if ids is None else ids)
        batch = torch.tensor(np.concatenate(parts, axis=1), dtype=torch.float32)
        label = torch.tensor(rng.integers(0, 2, (case.batch_size, 1)), dtype=torch.float32)
        started = time.perf_counter()
        optimizer.zero_grad()
        score = model(batch)
        loss = torch.nn.functional.binary_cross_entropy(score, label, reduction="sum")
        (loss + model.aux_loss).backward()
        optimizer.step()
        times.append(time.perf_counter() - started)
    return times[steps:]
