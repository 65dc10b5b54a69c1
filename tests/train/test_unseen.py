"""Unknown items are worth what known ones are, and noise stays noise in every odd form of a log."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from logs import random_dataset
from recjax.train import launch
from recjax.train.data.sources import open_source
from recjax.train.unseen import unseen_weights, with_average_unseen

USERS, EVENTS = 1000, 9


def test_known_rows_weigh_as_the_root_of_their_choices():
    dataset = random_dataset(users=20, items=30)
    weights = unseen_weights(dataset)
    assert set(weights) == {"item", "category", "behavior"}
    chosen = dataset.log.items["category"][dataset.train.candidate[:, 0]]
    expected = np.sqrt([np.sum(chosen == row) for row in range(2, len(weights["category"]))])
    expected = expected / expected.sum()
    np.testing.assert_allclose(weights["category"], [0, 0, *expected], rtol=1e-6)
    # What only stands in histories is chosen by nobody: all alike.
    np.testing.assert_allclose(weights["behavior"], [0, 0, 1 / 3, 1 / 3, 1 / 3], rtol=1e-6)


def test_row_one_becomes_the_mean_and_nothing_else_changes():
    tables = {"item": jnp.arange(8.0).reshape(4, 2), "other": jnp.ones((4, 2))}
    weights = {"item": np.array([0, 0, 0.25, 0.75], np.float32)}
    done = with_average_unseen({"tables": tables, "params": {"w": 1}}, weights)
    assert done["tables"]["item"].tolist() == [[0, 1], [5.5, 6.5], [4, 5], [6, 7]]
    assert done["tables"]["other"] is tables["other"] and done["params"] == {"w": 1}


def test_rows_that_data_train_keep_what_they_learnt():
    dataset = random_dataset(users=20, items=30)
    assert unseen_weights(dataclasses.replace(dataset, samples_negatives=False)) == {}
    fields = tuple(
        dataclasses.replace(f, missing="unseen") if f.name == "category" else f
        for f in dataset.schema.fields
    )
    told = dataclasses.replace(dataset, schema=dataclasses.replace(dataset.schema, fields=fields))
    assert set(unseen_weights(told)) == {"item", "behavior"}


def noise(form, random):
    """Columns of a log in which nothing predicts anything."""
    items = {"cold": 6000, "sessions": USERS * EVENTS}.get(form, 300)
    user = np.repeat(np.arange(USERS), EVENTS)
    item = random.integers(0, items, len(user))
    if form == "sessions":  # Everything is bought once.
        item = random.permutation(len(user))
    time = 1_600_000_000 + random.integers(0, 10**7, len(user))
    columns = {"user_id": user, "item_id": item, "timestamp": time}
    if form == "sessions":
        columns["session"] = user * 10 + np.argsort(np.argsort(time)) % 3
    if form == "crawler":
        seen = random.permutation(items)[:-2]
        more = np.full(len(seen), USERS), seen, 1_600_000_000 + np.arange(len(seen))
        columns = {
            name: np.concatenate([x, y]) for (name, x), y in zip(columns.items(), more, strict=True)
        }
    if form == "ms":
        columns["timestamp"] = columns["timestamp"] * 1000
    rows = list(zip(*columns.values(), strict=True))
    rows = rows * 2 if form == "twice" else rows
    return ",".join(columns) + "\n" + "\n".join(",".join(map(str, row)) for row in rows) + "\n"


@pytest.mark.parametrize("form", ["plain", "cold", "twice", "sessions", "crawler", "ms"])
def test_noise_stays_noise(tmp_path, form):
    """A thousand users: the standard error of the AUC is .013."""
    path = tmp_path / "log.csv"
    path.write_text(noise(form, np.random.default_rng(7)))
    source = f"events:{path}"
    _, results = launch.train(
        "din",
        data=open_source(source),
        out=tmp_path / "run",
        options={
            "epochs": 3,
            "batch_size": 512,
            "history": 8,
            "patience": 0,
            "attention_units": 8,
            "tower_units": 16,
        },
        quiet=True,
    )
    assert abs(results["test"]["auc"] - 0.5) < 0.04
    assert abs(results["test"]["logloss"] - np.log(2)) < 0.01
