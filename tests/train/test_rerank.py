"""Generators learn from evaluators, without feedback."""

import dataclasses
import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.cli import main
from recjax.train import checkpoints, launch
from recjax.train.data.batches.assembly import whole_batch
from recjax.train.data.market import PRESETS, slate_log
from recjax.train.data.market.slates import SLATES, SlateWorld
from recjax.train.rerank import Actor, fit_generator, train_generator
from recjax.train.run import Interrupted, RunError
from recjax.train.settings import Settings
from recjax.zoo.rerank import evaluator, generator, nar, rewards

PRESET = SLATES["cascade"]
SMALL = dataclasses.replace(PRESET, market=PRESETS["tiny"], candidates=8, slots=3)
# The same for all, so that one compiled step serves most tests.
FAST = Settings(schedule="constant", learning_rate=1e-2, table_learning_rate=1e-2)


@pytest.fixture(scope="module")
def data():
    return slate_log.load(SlateWorld(SMALL), name="candidates:small", slates=60, view="candidates")


def made(data, module=generator, **options):
    if module is nar:
        return nar.Config(schema=data.schema, slots=3, units=8, heads=2, feed_units=8, **options)
    sizes = {"encoder_units": 8, "hidden_units": 4, "head_units": 8}
    return generator.Config(schema=data.schema, slots=3, **sizes, **options)


class Cheap:
    """An evaluator that likes low prices, above all in the first slots."""

    @staticmethod
    def encode(variables, config, batch):
        del variables, config
        return jnp.asarray(batch["candidate"]["price"])

    @staticmethod
    def judge(variables, config, encoded, order):
        del variables, config
        liked = -rewards.at(encoded, order) / jnp.arange(1.0, 4.0)[None, None]
        return jnp.stack([liked, jnp.zeros_like(liked)], axis=-1)


def cheap(data, worth=(1.0, 0.0), more=()):
    config = evaluator.Config(schema=data.schema, slots=3)
    return rewards.Evaluators([{}], config, worth, more, Cheap)


def requests_of(data, part="train"):
    everything = getattr(data, part)
    return lambda step: everything.take(np.arange(30) + 30 * (step % 2))


def judged(data, config, variables, module=generator, **more):
    batch = {**whole_batch(data.schema, data.log, data.train, history=1), **more}
    order = slates(module, config)(variables, batch)[:, None]
    return float(rewards.judge_of(cheap(data), batch)(order).sum(axis=2).mean())


@functools.cache
def slates(module, config):
    return jax.jit(lambda variables, batch: module.apply(variables, config, batch).order)


@pytest.mark.parametrize("module", [generator, nar], ids=["generator", "nar"])
def test_what_evaluators_like_is_learnt(data, module):
    config = made(data, module)
    settings = dataclasses.replace(FAST, steps=60)
    start = module.init(jax.random.key(0), config)
    found = train_generator(
        config, data.log, requests_of(data), cheap(data), settings, module=module, quiet=True
    )
    before = judged(data, config, start, module)
    best = np.sort(data.log.items["price"][data.train.candidate], axis=1)[:, :3]
    top = (1 / (1 + np.exp(best / np.arange(1, 4)))).sum(axis=1).mean()
    assert judged(data, config, found, module) > before + 0.6 * (top - before)


def test_an_actor_goes_on_where_it_was(data):
    """Learning online: as good on the spot as what it started from, and better after more steps."""
    config, by = made(data), cheap(data)
    start = generator.init(jax.random.key(3), config)
    kept = jax.tree.map(np.array, start)
    actor = Actor(config, data.log, by, FAST, start=start)
    before = judged(data, config, actor.variables)
    assert before == judged(data, config, start)
    for step in range(40):
        actor.learn(requests_of(data)(step))
    assert judged(data, config, actor.variables) > before + 0.05
    jax.tree.map(np.testing.assert_array_equal, kept, start)  # What was given stays.


def test_labels_are_not_read(data):
    bare = dataclasses.replace(data.train, label={}, weight={})
    config, settings = made(data), dataclasses.replace(FAST, steps=3)
    one = train_generator(config, data.log, requests_of(data), cheap(data), settings, quiet=True)
    asked = lambda step: bare.take(np.arange(30) + 30 * (step % 2))
    other = train_generator(config, data.log, asked, cheap(data), settings, quiet=True)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_preferences_steer_one_generator(data):
    """Cheap items at one end, dear ones at the other, by the weights of the request alone."""
    config = made(data, preferences=("cheap", "dear"))
    dear = lambda batch, order: 1 / (1 + jnp.exp(-rewards.feature("price")(batch, order)))
    by = cheap(data, ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0)), (dear,))
    settings = dataclasses.replace(FAST, steps=150)
    found = train_generator(config, data.log, requests_of(data), by, settings, quiet=True)
    size = len(data.train)
    scores = []
    for weight in (0.0, 0.5, 1.0):
        preference = np.tile(np.array([weight, 1 - weight], np.float32), (size, 1))
        scores.append(judged(data, config, found, preference=preference))
    assert scores[0] < scores[1] < scores[2]
    assert scores[2] - scores[0] > 0.3


def test_a_run_can_be_read_back(data, tmp_path):
    config = made(data)
    results = fit_generator(
        generator,
        config,
        data,
        cheap(data),
        Settings(epochs=1, batch_size=160),
        tmp_path / "run",
        name="generator",
        source="candidates:small",
        quiet=True,
    )
    assert results["train"]["steps"] == 3  # 60 requests, 20 at a time.
    assert results["test"]["auc"] is not None and "logloss" not in results["test"]
    assert results == json.loads((tmp_path / "run" / "metrics.json").read_text())
    trained = launch.load_run(tmp_path / "run")
    assert trained.config == config
    again = launch.evaluate_run(tmp_path / "run", data=data)
    assert again["test"]["auc"] == results["test"]["auc"]


def test_generators_with_preferences_are_judged_with_all_alike(data, tmp_path):
    by = cheap(data, ((1.0, 0.0), (0.0, 1.0)))
    results = fit_generator(
        generator,
        made(data, preferences=("clicks", "purchases")),
        data,
        by,
        Settings(steps=2),
        tmp_path / "run",
        name="generator",
        source="candidates:small",
        quiet=True,
    )
    assert results["test"]["evaluator_score"] > 0


def test_wrong_arguments_are_named(data, tmp_path):
    config, by = made(data), cheap(data)
    with pytest.raises(ValueError, match="steps must be >= 1 for a generator"):
        train_generator(config, data.log, requests_of(data), by, Settings(), quiet=True)
    with pytest.raises(ValueError, match="worth must have a row for each of the preferences a, b"):
        Actor(made(data, preferences=("a", "b")), data.log, by, Settings())
    other = dataclasses.replace(by.config, schema=data.schema.with_rows({"item": 7}))
    with pytest.raises(ValueError, match="must have one schema"):
        Actor(config, data.log, by._replace(config=other), Settings())
    for arguments, said in (
        (["generator"], "'generator' needs --evaluator"),
        (["din", "--evaluator", "x"], "'din' takes no --evaluator"),
        (
            ["generator", "--evaluator", "x", "--devices", "2"],
            "is trained on one device, got --devices 2",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            launch.train(
                arguments[0],
                evaluators=["x"] if "--evaluator" in arguments else [],
                devices=2 if "--devices" in arguments else 1,
            )
    assert main(["train", "generator", "--out", str(tmp_path / "new")]) == 2


def test_evaluators_must_be_evaluators_of_one_kind(data, tmp_path):
    slates = slate_log.load(SlateWorld(SMALL), name="slates:small", slates=60)
    small = ["units=8", "gru_units=8", "tower_units=8"]
    for name, options in (("one", small), ("other", [*small, "window=1"])):
        launch.train(
            "evaluator",
            data=slates,
            out=tmp_path / name,
            options={"epochs": 1, "slots": 3, **launch.options_of(options)},
            quiet=True,
        )
    by = launch.load_evaluators([tmp_path / "one", tmp_path / "one"])
    assert len(by.variables) == 2 and by.worth == (1.0, 0.0)
    with pytest.raises(ValueError, match="differ in their options or schema"):
        launch.load_evaluators([tmp_path / "one", tmp_path / "other"])
    folder, results = launch.train(
        "nar",
        data=data,
        evaluators=[tmp_path / "one"],
        out=tmp_path / "nar",
        options={"steps": 2, "slots": 3, "units": 8, "heads": 2},
        quiet=True,
    )
    assert results["test"]["evaluator_score"] > 0
    with pytest.raises(ValueError, match="is a run of 'nar', not of an evaluator"):
        launch.load_evaluators([folder])


def test_interrupted_and_resumed_ends_with_the_same_bits(data, tmp_path, monkeypatch):
    by = cheap(data)
    other = by._replace(variables=[{"other": jnp.ones(2)}])
    config = made(data)
    settings = Settings(steps=6, batch_size=256, checkpoint_every=2, history=1)
    fit = functools.partial(
        fit_generator, generator, config, data, settings=settings, name="generator",
        source="candidates:small", quiet=True,
    )  # fmt: skip
    whole = fit(by, out=tmp_path / "whole")
    learn = Actor.learn

    def until_the_fifth(actor, requests, judges=None):
        if actor.number == 4:
            raise KeyboardInterrupt
        return learn(actor, requests, judges)

    monkeypatch.setattr(Actor, "learn", until_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        fit(by, out=tmp_path / "run")
    monkeypatch.setattr(Actor, "learn", learn)
    with pytest.raises(RunError, match="was trained with other evaluators"):
        fit(other, out=tmp_path / "run", resume=True)
    resumed = fit(by, out=tmp_path / "run", resume=True)
    assert resumed["test"] == whole["test"]
    like = jax.eval_shape(lambda: generator.init(jax.random.key(0), config))
    variables = [
        checkpoints.restore(tmp_path / name / "checkpoints" / "best", like)[1]
        for name in ("whole", "run")
    ]
    jax.tree.map(np.testing.assert_array_equal, *variables)
    with pytest.raises(RunError, match="is not empty"):
        fit(by, out=tmp_path / "run")


def test_ctrl_c_loses_no_step(data, tmp_path, monkeypatch, capsys):
    """It comes after the third step, of which the number does not know yet."""
    by, config = cheap(data), made(data)
    settings = Settings(steps=60, batch_size=256, checkpoint_every=50, history=1)
    fit = functools.partial(
        fit_generator, generator, config, data, by, settings, name="generator",
        source="candidates:small",
    )  # fmt: skip
    whole = fit(out=tmp_path / "whole")
    said = [line for line in capsys.readouterr().err.splitlines() if "in all" in line]
    assert len(said) == 1 and said[0].startswith("generator: 60 steps"), said
    begin = Actor.__init__

    def ahead(actor, *args, **options):
        begin(actor, *args, **options)
        compiled, count = actor._step, 0

        def interrupted(*state):
            nonlocal count
            count += 1
            if count == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return compiled(*state)

        actor._step = interrupted

    monkeypatch.setattr(Actor, "__init__", ahead)
    with pytest.raises(Interrupted) as stop:
        fit(out=tmp_path / "run", quiet=True)
    monkeypatch.undo()
    assert stop.value.step == 3
    capsys.readouterr()
    resumed = fit(out=tmp_path / "run", resume=True, quiet=True)
    assert resumed["test"] == whole["test"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["prm", "dlcm", "seq2slate"])
def test_rivals_train_on_what_was_shown(data, tmp_path, name):
    options = ["slots=3"] if name == "seq2slate" else []
    _, results = launch.train(
        name,
        data=data,
        out=tmp_path / "run",
        options={"epochs": 1, **launch.options_of(options)},
        quiet=True,
    )
    assert results["test"]["examples"] == 3 * len(data.test)  # What was shown, and nothing else.
    assert results["test"]["auc"] is not None
