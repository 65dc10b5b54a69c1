"""Probabilities of runs: fitted on validation, kept, shifted for serving, judged aloud."""

import dataclasses
import json

import numpy as np
import pytest

from recjax import api
from recjax.train import launch, loop, rerank, run
from recjax.train.data.event_log import Requests
from recjax.train.data.sources import open_source
from recjax.train.defaults import model_config
from recjax.train.evaluation import metrics
from recjax.train.evaluation.calibration import Calibration, choose_calibration, shift_of
from recjax.train.evaluation.reliability import reliability
from recjax.train.evaluation.scoring import fit_calibrations, reliabilities
from recjax.train.settings import Settings
from recjax.zoo import MODELS
from recjax.zoo.rerank import GENERATORS
from recjax.zoo.rerank.rewards import Evaluators

SHORT = {"steps": 12, "batch_size": 512, "history": 8}


@pytest.fixture(scope="module")
def data():
    return open_source("market:tiny")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "run"
    return launch.train("esmm", data="market:tiny", out=out, options=SHORT, quiet=True)


def asked(requests=200, candidates=4, users=30, seed=0):
    """Requests, and two tasks' logits of them, of which users are most of what there is to know."""
    random = np.random.default_rng(seed)
    user = random.integers(0, users, requests).astype(np.int32)
    candidate = random.integers(0, 9, (requests, candidates)).astype(np.int32)
    candidate[::3, -1] = -1
    liked = random.uniform(0.1, 0.9, users)[user][:, None]
    click = (random.random(candidate.shape) < liked).astype(np.float32)
    buy = click * (random.random(candidate.shape) < 0.4).astype(np.float32)
    found = Requests(
        user=user,
        cut=np.zeros(requests, np.int64),
        time=np.zeros(requests, np.int64),
        candidate=candidate,
        label={"click": click, "buy": buy},
        weight={"click": random.uniform(0.5, 3, candidate.shape).astype(np.float32)},
    )
    odds = lambda: (random.normal(size=candidate.shape) + 3 * liked).astype(np.float32)
    return found, {"click": odds(), "buy": odds(), "buy_given_click": odds()}


def test_calibrations_are_of_real_candidates_their_weights_and_their_users():
    requests, logits = asked()
    found = fit_calibrations(requests, logits)
    real = requests.candidate >= 0
    user = np.repeat(requests.user[:, None], 4, axis=1)
    click, buy = requests.label["click"], requests.label["buy"]
    weight = requests.weight["click"]
    assert found["click"] == choose_calibration(
        logits["click"][real], click[real], weight[real], user[real]
    )
    assert found["buy"] == choose_calibration(logits["buy"][real], buy[real], None, user[real])
    clicked = real & (click > 0)
    assert found["buy_given_click"] == choose_calibration(
        logits["buy_given_click"][clicked], buy[clicked], None, user[clicked]
    )
    assert found["click"] != choose_calibration(logits["click"][real], click[real], None)


def test_users_are_held_out_whole():
    requests, logits = asked(requests=1500)
    _, code = np.unique(requests.user, return_inverse=True)
    noise = np.random.default_rng(3).permutation(30)[code][:, None] * 0.01 * np.ones((1, 4))
    share = np.random.default_rng(4).permutation(np.where(np.arange(30) % 2, 0.8, 0.2))[code]
    drawn = np.random.default_rng(5).random(requests.candidate.shape)
    label = {"click": (drawn < share[:, None]).astype(np.float32)}
    requests = dataclasses.replace(requests, label=label, weight={})
    found = fit_calibrations(requests, {"click": noise})
    real = requests.candidate >= 0
    alone = choose_calibration(noise[real], label["click"][real])
    assert found["click"] == Calibration() != alone


def test_the_prior_shifts_the_first_task_alone():
    requests, logits = asked()
    without, found = (fit_calibrations(requests, logits, positive_rate=p) for p in (0.0, 0.01))
    real = requests.candidate >= 0
    shift = shift_of(0.01, requests.label["click"][real], requests.weight["click"][real])
    assert found == {**without, "click": without["click"]._replace(shift=shift)}
    assert shift < -3


def test_reliabilities_are_of_the_same_examples():
    requests, logits = asked()
    calibrations = {name: Calibration(0.5, -1.0, shift=9.0) for name in logits}
    found = reliabilities(requests, logits, calibrations)
    real = requests.candidate >= 0
    assert list(found) == list(logits)
    x, y, w = logits["click"][real], requests.label["click"][real], requests.weight["click"][real]
    for form, odds in (("as scored", x.astype(float)), ("calibrated", 0.5 * x.astype(float) - 1)):
        expected = reliability(1 / (1 + np.exp(-odds)), y, w)
        for one, other in zip(found["click"][form], expected, strict=True):
            np.testing.assert_allclose(one, other)


def test_a_run_keeps_its_prior_and_its_metrics_know_nothing_of_it(plain, data, tmp_path):
    folder, results = plain
    shifted, again = launch.train(
        "esmm",
        data="market:tiny",
        out=tmp_path / "run",
        options={**SHORT, "positive_rate": 0.001},
        quiet=True,
    )
    assert again["test"] == results["test"] and again["validation"] == results["validation"]
    without, found = (launch.load_run(one).calibrations for one in (folder, shifted))
    real = data.validation.candidate >= 0
    shift = shift_of(0.001, data.validation.label["click"][real])
    assert found == {**without, "click": without["click"]._replace(shift=shift)}
    assert found["click"].served(np.zeros(1)) - found["click"](np.zeros(1)) == shift
    assert launch.evaluate_run(shifted)["test"] == again["test"]
    predicted = api.load(shifted).probability("click", np.zeros(1))
    assert predicted == metrics.sigmoid(found["click"].served(np.zeros(1)))
    assert json.loads((shifted / "config.json").read_text())["settings"]["positive_rate"] == 0.001


@pytest.mark.parametrize(
    ("calibration", "kept"),
    [
        (Calibration(0.5, -1.0), {"slope", "intercept"}),
        (Calibration(), {"slope", "intercept"}),
        (Calibration(shift=-2.0), {"slope", "intercept", "shift"}),
        (Calibration(0.5, 1.0, 0.2, -1.0, 0.7), {"slope", "intercept", "bend", "knot", "width"}),
    ],
)
def test_calibrations_are_written_and_read(calibration, kept, tmp_path):
    run.save_calibrations(tmp_path, {"click": calibration})
    content = json.loads((tmp_path / "calibration.json").read_text())
    assert content["click"].keys() == kept  # What older releases do not know only where needed.
    assert run.load_calibrations(tmp_path) == {"click": calibration}


def test_files_of_older_runs_are_read(tmp_path):
    (tmp_path / "calibration.json").write_text('{"click": {"slope": 0.5, "intercept": -1.0}}')
    assert run.load_calibrations(tmp_path) == {"click": Calibration(0.5, -1.0)}


@pytest.mark.parametrize("rate", [-0.1, 1.0, 7.0])
def test_a_prior_is_a_share(rate):
    with pytest.raises(ValueError, match="positive_rate must be in .0, 1., got"):
        Settings(positive_rate=rate)


@pytest.mark.parametrize("model", ["mf", "seq2slate"])
def test_models_without_probabilities_take_no_prior(model, tmp_path):
    source = "market:tiny" if model == "mf" else "slates:cascade"
    settings = {**SHORT, "positive_rate": 0.1}
    with pytest.raises(ValueError, match="positive_rate must be 0, got 0.1: the model gives no"):
        launch.train(model, data=source, out=tmp_path / "run", options=settings, quiet=True)
    assert not (tmp_path / "run").exists()


def test_generators_take_no_prior(data, tmp_path):
    with pytest.raises(ValueError, match="positive_rate must be 0, got 0.1: the model gives no"):
        rerank.fit_generator(
            GENERATORS["generator"],
            None,
            data,
            Evaluators([], None, (1.0,)),
            Settings(**SHORT, positive_rate=0.1),
            tmp_path / "run",
            name="generator",
            source="market:tiny",
        )


def test_a_prior_needs_both_classes_in_validation_before_any_training(data, tmp_path):
    label = {task: np.zeros_like(y) for task, y in data.validation.label.items()}
    blind = dataclasses.replace(data, validation=dataclasses.replace(data.validation, label=label))
    config = model_config("mlp", data.schema)
    settings = Settings(**SHORT, positive_rate=0.1)
    with pytest.raises(ValueError, match="validation's 'click' has one class"):
        loop.fit(MODELS["mlp"], config, blind, settings, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_bad_probabilities_are_said_and_noted(plain, data, tmp_path, monkeypatch, capsys):
    assert "warnings" not in plain[1]
    config, settings = model_config("mlp", data.schema), Settings(**SHORT)
    said = {"validation": [], "test": ["scene = home predicts 3.00 times its positives", "more"]}
    blocks = []

    def scripted(block):
        blocks.append(block)
        return said["validation" if len(blocks) == 1 else "test"]

    monkeypatch.setattr(loop, "miscalibrated", scripted)
    results = loop.fit(MODELS["mlp"], config, data, settings, tmp_path / "run", source="the market")
    assert blocks == [results["validation"], results["test"]]
    assert results["warnings"] == [f"test, {line}" for line in said["test"]]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == results
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "probabilities are" in one]
    assert line == (
        "mlp on the market: warning: probabilities are off: test, scene = home predicts 3.00 times "
        "its positives, and 1 more, see metrics.json"
    )


@pytest.mark.parametrize("learnt", [False, True])
def test_a_model_that_learnt_nothing_is_said(data, tmp_path, monkeypatch, capsys, learnt):
    config, settings = model_config("mlp", data.schema), Settings(**SHORT)
    line = ["AUC is .5, no better than chance"]
    monkeypatch.setattr(loop, "no_better_than_chance", lambda block: [] if learnt else line)
    loop.fit(MODELS["mlp"], config, data, settings, tmp_path / "run", source="the market")
    assert (f"mlp on the market: warning: {line[0]}" in capsys.readouterr().err) != learnt


def test_orders_and_vectors_have_no_picture(tmp_path):
    folder, _ = launch.train(
        "mf", data="market:tiny", out=tmp_path / "run", options=SHORT, quiet=True
    )
    assert (folder / "learning_curve.png").exists()
    assert not (folder / "reliability.png").exists()
    assert not (folder / "calibration.json").exists()
