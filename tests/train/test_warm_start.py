"""What a run begins with that goes on from another: the same of all that both know."""

import dataclasses

import jax
import numpy as np
import pytest

import recjax
from recjax.train.run import RunError
from recjax.train.warm_start import warm_variables
from recjax.zoo import mlp
from recjax.zoo.features import signatures

OPTIONS = {"steps": 3, "tower_units": 8, "history": 5}


def rows(first, last):
    """A log in which items `first` to `last` are met."""
    items = list(range(first, last))
    return [
        {
            "user_id": u,
            "item_id": items[(u * 7 + t * (1 + u % 3)) % len(items)],
            "category_id": f"c{items[(u * 7 + t * (1 + u % 3)) % len(items)] % 9}",
            "timestamp": 1000 + 60 * t + u,
        }
        for u in range(25)
        for t in range(8)
    ]


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    out = tmp_path_factory.mktemp("before") / "run"
    return recjax.train("mlp", rows(10, 33), options=OPTIONS, out=out, quiet=True)


@pytest.fixture(scope="module")
def data(before):
    """Of another day: items 10 to 19 are gone, and 33 to 39 are new, in front of the others."""
    return recjax.read(rows(20, 40), like=before)


def test_all_that_was_known_is_found_by_its_name(before, data):
    trained = before._trained
    warm = warm_variables(trained, mlp, config_for(before, data), data, seed=7)
    fresh = mlp.init(jax.random.key(7), config_for(before, data))
    jax.tree.map(np.testing.assert_array_equal, warm["params"], before.variables["params"])
    was, now = trained.saved.row_maps["item"], data.row_maps["item"]
    kept, new = signatures("item", [*range(20, 33)]), signatures("item", [*range(33, 40)])
    assert (np.diff(was(kept).astype(int)) != np.diff(now(kept).astype(int))).any()
    old, table = (np.asarray(one["tables"]["item"]) for one in (before.variables, warm))
    np.testing.assert_array_equal(table[now(kept)], old[was(kept)])
    np.testing.assert_array_equal(table[:2], old[:2])
    np.testing.assert_array_equal(table[now(new)], np.asarray(fresh["tables"]["item"])[now(new)])
    assert len(table) == now.rows == 2 + len(kept) + len(new)
    assert not np.isin(table[now(new)], old).any()


def config_for(run, data):
    return dataclasses.replace(run.config, schema=data.schema)


def test_a_tiny_step_leaves_what_was_learnt(before, data, tmp_path):
    still = {"steps": 1, "learning_rate": 1e-30, "table_learning_rate": 1e-30}
    run = recjax.train(
        "mlp",
        data,
        options={**OPTIONS, **still},
        out=tmp_path / "run",
        warm_start=before,
        quiet=True,
    )
    jax.tree.map(np.testing.assert_array_equal, run.variables["params"], before.variables["params"])
    kept = signatures("item", [*range(20, 33)])
    maps = before._trained.saved.row_maps["item"], run._trained.saved.row_maps["item"]
    old, table = (np.asarray(one.variables["tables"]["item"]) for one in (before, run))
    np.testing.assert_array_equal(table[maps[1](kept)], old[maps[0](kept)])
    # Where ids are the same, so are the answers.
    record = {
        "context": {"time": 5000},
        "user": {"history": [{"time": 4000, "item": 21, "category": "c3"}]},
        "items": [{"item": at, "category": f"c{at % 9}"} for at in range(20, 33)],
    }
    scores = [np.asarray(one.outputs(one.encode([record]))["logit"]) for one in (before, run)]
    np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-6)


def test_the_same_data_begin_with_the_same_metrics(before, tmp_path):
    options = {**OPTIONS, "learning_rate": 1e-30, "table_learning_rate": 1e-30, "unseen_share": 0.0}
    run = recjax.train(
        "mlp",
        rows(10, 33),
        options=options,
        out=tmp_path / "run",
        warm_start=str(before.folder),
        quiet=True,
    )
    assert run.metrics["test"] == before.metrics["test"]
    jax.tree.map(np.testing.assert_array_equal, run.variables, before.variables)


def test_a_warm_run_resumes(before, data, tmp_path):
    given = dict(options=OPTIONS, out=tmp_path / "run", warm_start=before, quiet=True)
    run = recjax.train("mlp", data, **given)
    (run.folder / "metrics.json").unlink()
    again = recjax.train("mlp", data, resume=True, **given)
    jax.tree.map(np.testing.assert_array_equal, again.variables, run.variables)


def test_what_does_not_fit_is_named(before, data, tmp_path):
    def refused(said, model="mlp", data=data, start=before, **options):
        with pytest.raises(RunError, match=said) as caught:
            recjax.train(
                model, data, options={**OPTIONS, **options}, out=tmp_path / "out",
                warm_start=start, quiet=True,
            )  # fmt: skip
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    refused("the earlier run has other options: tower_units.", tower_units=4)
    refused("is a run of 'mlp', not of 'din'", model="din")
    refused("is not the folder of a run", start=tmp_path / "none")
    bare = [{k: v for k, v in row.items() if k != "category_id"} for row in rows(20, 40)]
    refused("was trained on another schema", data=recjax.read(bare))
    assert recjax.read(rows(10, 33)).schema.hash == before.schema.hash
