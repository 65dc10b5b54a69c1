"""Models that rank, judge, re-rank and retrieve, on files of impressions."""

import dataclasses

import numpy as np
import pytest

from recjax.train import launch
from recjax.train.data.sources import impressions
from recjax.train.evaluation.metrics import auc
from recjax.train.evaluation.scoring import predict

TINY = {"steps": 2, "batch_size": 32, "history": 4}


def log(tmp_path, *, users=60, requests=16, candidates=2, planted=True, timed=True, seed=0):
    """A file, and (click, buy) probabilities of each candidate of its test requests.

    Users of even number like items below 20, the others those above: they click 9 of 10 of these,
    and 1 of 10 of the others. Every third item is bought by 4 of 5 who click it, others by 1 of 10.
    """
    rng = np.random.default_rng(seed)
    asked = rng.permutation(np.repeat(np.arange(users), requests))
    columns = "user_id,request_id,timestamp,position,item_id,category_id,label_click,label_buy"
    lines, truth = [columns if timed else columns.replace("timestamp,", "")], []
    for number, user in enumerate(asked):
        clock = f"{1_600_000_000 + 600 * number}," if timed else ""
        truth.append([])
        for slot, item in enumerate(rng.choice(40, candidates, replace=False)):
            click = (0.9 if (item < 20) == (user % 2 == 0) else 0.1) if planted else 0.5
            buy = (0.8 if item % 3 == 0 else 0.1) if planted else 0.5
            clicked, bought = rng.random() < click, rng.random() < buy
            lines.append(
                f"{user},{number},{clock}{slot + 1},{item},{item // 5},{clicked:d},"
                f"{clicked and bought:d}"
            )
            truth[-1].append((click, click * buy))
    path = tmp_path / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    return path, np.array(truth)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path, _ = log(tmp_path_factory.mktemp("log"), users=12, requests=6, candidates=3)
    return impressions.load(path)


@pytest.fixture(scope="module")
def evaluator(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "evaluator"
    launch.train("evaluator", data=dataset, out=folder, options=TINY, quiet=True)
    return folder


@pytest.mark.parametrize("model", ["mlp", "din", "dcn", "esmm", "prm", "dlcm", "seq2slate"])
def test_labels_are_trained_on(model, dataset, tmp_path):
    folder, results = launch.train(
        model, data=dataset, out=tmp_path / "run", options=TINY, quiet=True
    )
    test = results["test"].get("click", results["test"])
    # Labels, not drawn negatives: the candidates of the test requests, as they were shown.
    assert test["examples"] == dataset.test.examples == 3 * len(dataset.test)
    assert test["positives"] == dataset.test.label["click"].sum()
    assert launch.evaluate_run(folder, data=dataset)["test"] == results["test"]


def test_slates_are_judged_and_written(dataset, evaluator, tmp_path):
    _, results = launch.train(
        "generator",
        data=dataset,
        evaluators=[evaluator],
        out=tmp_path / "run",
        options=TINY,
        quiet=True,
    )
    assert np.isfinite(results["test"]["evaluator_score"])


def test_positives_are_retrieved(dataset, tmp_path):
    _, results = launch.train("mf", data=dataset, out=tmp_path / "run", options=TINY, quiet=True)
    clicked = (dataset.test.label["click"] > 0).any(axis=1)
    assert results["test"]["requests"] == clicked.sum()
    assert results["train"]["examples"] <= 2 * 32


def learn(model, path, tmp_path, **settings):
    dataset = impressions.load(path)
    chosen = {"epochs": 6, "batch_size": 128, "history": 20, "patience": 0, **settings}
    _, results = launch.train(model, data=dataset, out=tmp_path / "run", options=chosen, quiet=True)
    return dataset, results["test"]


@pytest.mark.parametrize("timed", [True, False], ids=["timed", "in order"])
def test_din_learns_what_is_planted(timed, tmp_path):
    path, truth = log(tmp_path, timed=timed)
    dataset, test = learn("din", path, tmp_path)
    known = auc(truth[-len(dataset.test) :, :, 0].ravel(), dataset.test.label["click"].ravel())
    assert known > 0.85
    assert test["click" if "click" in test else "auc"] is not None
    block = test.get("click", test)
    assert block["auc"] > known - 0.06


def test_esmm_learns_both_tasks(tmp_path):
    path, truth = log(tmp_path)
    dataset, test = learn("esmm", path, tmp_path)
    for number, task in enumerate(("click", "buy")):
        label = dataset.test.label[task].ravel()
        known = auc(truth[-len(dataset.test) :, :, number].ravel(), label)
        assert test[task]["auc"] > known - 0.08


def test_nothing_is_learnt_from_noise(tmp_path):
    path, _ = log(tmp_path, planted=False, users=100)
    dataset, test = learn("din", path, tmp_path, epochs=3)
    count = dataset.test.examples
    # Three standard deviations of the AUC of a model that knows nothing.
    assert abs(test.get("click", test)["auc"] - 0.5) < 3 / np.sqrt(3 * count)


def test_weights_are_trained_on(dataset, tmp_path):
    """Where all positives weigh nothing in training, every click is unlikely."""
    click = dataset.train.label["click"]
    light = np.where(click > 0, 0.0, 1.0).astype(np.float32)
    train = dataclasses.replace(dataset.train, weight={"click": light})
    settings = {**TINY, "steps": 30}
    unlikely = []
    for number, requests in enumerate((dataset.train, train)):
        changed = dataclasses.replace(dataset, train=requests)
        folder, _ = launch.train(
            "mlp", data=changed, out=tmp_path / str(number), options=settings, quiet=True
        )
        run = launch.load_run(folder)
        logits = predict(
            run.module, run.config, run.variables, dataset, dataset.validation, history=50
        )
        unlikely.append(logits["click"][dataset.validation.candidate >= 0].mean())
    assert unlikely[1] < unlikely[0] - 0.5
