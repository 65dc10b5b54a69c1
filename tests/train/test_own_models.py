"""Models of one's own through the API, also those that are called like one of the zoo's."""

import inspect
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from own_model import DOT, Hashable
import recjax
from recjax.train import defaults, launch
from recjax.train import run as run_module
from recjax.train.inspection.suitable import require_suitable, unlearnt_tasks
from recjax.train.run import RunError
from recjax.zoo import mlp
from reranking import SCHEMA
from runs import fresh, saved

OPTIONS = {"steps": 2, "history": 5, "scale": 0.5}


def named(name, **changed):
    return Hashable(**{**vars(DOT), "__name__": name, **changed})


DIN = named("din")
ROWS = [
    {"user_id": u, "item_id": (u * 7 + t * (1 + u % 3)) % 23, "timestamp": 1000 + 60 * t + u}
    for u in range(25)
    for t in range(8)
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("own") / "run"
    return recjax.train(DIN, ROWS, options=OPTIONS, out=out, quiet=True)


def test_it_trains_and_opens_as_itself(run):
    assert run.name == "din" and run.module is DIN and run.config.scale == 0.5
    assert json.loads((run.folder / "config.json").read_text())["module"] == "din"
    again = recjax.load(run.folder, DIN)
    assert again.evaluate(ROWS)["test"] == run.metrics["test"]
    record = {"context": {"time": 9000}, "items": [{"item": 3}, {"item": 5}]}
    assert len(again.recommend([record])[0]) == 2


def test_it_is_not_opened_as_the_zoos(run, tmp_path):
    with pytest.raises(RunError, match="'din' .din. is not one of .*: give its module"):
        recjax.load(run.folder)
    for how in ({"warm_start": run}, {"warm_start": run.folder}):
        with pytest.raises(RunError, match="give its module"):
            options = {"steps": 1, "history": 5}
            recjax.train("din", ROWS, options=options, out=tmp_path / "x", quiet=True, **how)
    assert not (tmp_path / "x").exists()
    with pytest.raises(RunError, match="is a run of 'din', not of 'dot'"):
        recjax.load(run.folder, named("dot"))


def test_the_zoos_is_not_opened_as_ones_own(tmp_path):
    config = mlp.Config(schema=SCHEMA)
    folder = saved(tmp_path / "run", "mlp", config, fresh(mlp, config))
    with pytest.raises(RunError, match="is a run of the zoo's 'mlp', not of"):
        recjax.load(folder, named("mlp"))
    assert recjax.load(folder, mlp).name == recjax.load(folder).name == "mlp"


def test_it_exports(run, tmp_path):
    artifact = run.export(tmp_path / "a", platforms=["cpu"])
    records = recjax.read(ROWS).examples
    for one, other in zip(artifact.predict(records), run.predict(records), strict=True):
        np.testing.assert_allclose(one["click"], other["click"], rtol=0, atol=1e-6)
    assert (artifact.name, artifact.kind) == ("din", "ranking")


def test_it_goes_on_from_an_earlier_run(run, tmp_path):
    still = {**OPTIONS, "learning_rate": 1e-30, "table_learning_rate": 1e-30, "unseen_share": 0.0}
    given = dict(options=still, quiet=True)
    again = recjax.train(DIN, ROWS, out=tmp_path / "run", warm_start=run, **given)
    jax.tree.map(np.testing.assert_array_equal, again.variables, run.variables)
    resumed = recjax.train(DIN, ROWS, out=tmp_path / "run", resume=True, **given)
    assert resumed.metrics["test"] == again.metrics["test"]


def test_nothing_of_the_zoos_is_taken_for_it():
    """Neither settings nor options, worlds or needs go by the name alone."""
    usual = defaults.settings("")
    for name in ("lr", "mind", "generator"):
        assert defaults.settings(name, named(name)) == usual != defaults.settings(name)
    assert (
        defaults.model_options("din", DIN)
        == {}
        != defaults.model_options("din", defaults.ALL["din"])
    )
    assert launch.default_source(named("mlp", KIND="evaluator")) == "slates"
    assert launch.default_source("evaluator") == "slates" and launch.default_source(DIN) == "market"
    data = recjax.read(ROWS)
    require_suitable("esmm", named("esmm"), data)
    require_suitable("prm", named("prm"), data)
    assert unlearnt_tasks("din", DIN, ("view", "buy")) == ()
    assert unlearnt_tasks("din", defaults.ALL["din"], ("view", "buy")) == ("buy",)


def test_a_module_that_lacks_something(monkeypatch):
    bare = SimpleNamespace(__name__="my.bare", KIND="ranking", Config=None, init=None)
    # Types are checked here, where they are not for users.
    monkeypatch.setattr(run_module, "module_of", lambda model: model.__name__)
    with pytest.raises(ValueError, match="Model 'bare' has no apply, loss, requirements; see zoo"):
        inspect.unwrap(launch.named)(bare)
