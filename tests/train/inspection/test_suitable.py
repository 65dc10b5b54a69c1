"""Models are trained on data that can teach them, or the refusal says what would."""

import dataclasses

import numpy as np
import pytest

from logs import random_dataset
from recjax.cli import main
from recjax.train.data.errors import DataError
from recjax.train.data.sources import open_source
from recjax.train.defaults import ALL
from recjax.train.inspection.suitable import require_suitable

POSITIVES = random_dataset()
OF_SLATES = ("evaluator", "generator", "nar")
RERANKERS = ("prm", "dlcm", "seq2slate")


@pytest.fixture(scope="module")
def slates():
    return open_source("market:tiny")


def single(dataset):
    """The same requests, of their first candidate each."""
    first = lambda columns: {name: value[:, :1] for name, value in columns.items()}
    train = dataclasses.replace(
        dataset.train,
        candidate=dataset.train.candidate[:, :1],
        label=first(dataset.train.label),
        weight={},
        shown={},
    )
    return dataclasses.replace(dataset, train=train)


@pytest.mark.parametrize("name", ALL)
def test_every_model_learns_from_labelled_lists(slates, name):
    require_suitable(name, ALL[name], slates)


@pytest.mark.parametrize("name", ALL)
def test_logs_of_positives_are_no_slates(name):
    if name == "esmm":
        with pytest.raises(DataError, match="needs two tasks"):
            require_suitable(name, ALL[name], POSITIVES)
        return
    if name not in OF_SLATES:
        require_suitable(name, ALL[name], POSITIVES)
        return
    said = rf"Model '{name}' .* but .* holds single events.*use slates\[:PRESET\], candidates"
    with pytest.raises(DataError, match=said):
        require_suitable(name, ALL[name], POSITIVES)


@pytest.mark.parametrize("name", ALL)
def test_lists_of_one_have_no_order(slates, name):
    if name not in OF_SLATES + RERANKERS:
        require_suitable(name, ALL[name], single(slates))
        return
    with pytest.raises(DataError, match=f"Model '{name}' .* have 1 each; use slates"):
        require_suitable(name, ALL[name], single(slates))


def test_retrieval_needs_positives(slates):
    label = {task: np.zeros_like(value) for task, value in slates.train.label.items()}
    nothing = dataclasses.replace(slates, train=dataclasses.replace(slates.train, label=label))
    require_suitable("mlp", ALL["mlp"], nothing)
    with pytest.raises(DataError, match="Model 'mind' learns from positives, but no candidate"):
        require_suitable("mind", ALL["mind"], nothing)


def test_the_command_line_refuses_an_evaluator_of_events(tmp_path, capsys):
    log = tmp_path / "log.csv"
    rows = [f"{user},{user + step}" for user in range(9) for step in range(4)]
    log.write_text("\n".join(["user_id,item_id", *rows, ""]))
    out = tmp_path / "run"
    assert main(["train", "evaluator", "--data", f"events:{log}", "--out", str(out)]) == 2
    assert "use slates[:PRESET]" in capsys.readouterr().err and not out.exists()
