"""Runs: reproducible, resumable bit for bit, selected on validation alone."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from recjax.train import checkpoints, loop, run
from recjax.train.data.errors import DataError
from recjax.train.data.sources import events, open_source
from recjax.train.defaults import model_config
from recjax.train.launch import evaluate_run
from recjax.train.loop import count_rows, fit
from recjax.train.settings import Settings
from recjax.zoo import mlp
from recjax.zoo.features import KnownRows, Table

SETTINGS = Settings(epochs=2, batch_size=512, history=16, checkpoint_every=7)


@pytest.fixture(scope="module")
def data():
    return open_source("market:tiny")


@pytest.fixture(scope="module")
def config(data):
    return model_config("mlp", data.schema, {"tower_units": (8,)})


@pytest.fixture(scope="module")
def reference(data, config, tmp_path_factory):
    """An uninterrupted run: its folder and results."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    return folder, fit(mlp, config, data, SETTINGS, folder, quiet=True)


def arrays(folder, kind="last"):
    """Every array of the newest checkpoint, by name."""
    import orbax.checkpoint as ocp

    newest = max((p for p in (folder / "checkpoints" / kind).iterdir()), key=lambda p: int(p.name))
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(newest.absolute() / "arrays")
    return newest.name, {name: np.asarray(value) for name, value in tree.items()}


def assert_same_bits(folder, other, kind="last"):
    (step, one), (other_step, two) = arrays(folder, kind), arrays(other, kind)
    assert step == other_step and one.keys() == two.keys()
    for name, value in one.items():
        assert value.dtype == two[name].dtype and value.tobytes() == two[name].tobytes(), name


def judged(results):
    """What must not depend on the clock."""
    return {key: results[key] for key in ("validation", "test", "parameters")}


def test_a_run_leaves_its_folder(reference, data):
    folder, results = reference
    assert json.loads((folder / "metrics.json").read_text()) == results
    assert {"auc", "gauc", "logloss"} <= results["validation"].keys() & results["test"].keys()
    assert results["train"]["examples"] == 2 * data.train.examples
    assert results["train"]["epochs"] == 2
    for picture in ("learning_curve.png", "reliability.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    assert not list(folder.rglob("*partial*"))
    assert results["schema_hash"] == data.schema.hash
    rows = sum(table.rows * table.dim for table in data.schema.tables)
    assert results["parameters"] > rows


def test_same_seed_same_bits_other_seed_other_bits(reference, data, config, tmp_path):
    folder, results = reference
    again = fit(mlp, config, data, SETTINGS, tmp_path / "again", quiet=True)
    assert judged(again) == judged(results)
    assert_same_bits(folder, tmp_path / "again")
    other = dataclasses.replace(SETTINGS, seed=1, epochs=1)
    differs = fit(mlp, config, data, other, tmp_path / "other", quiet=True)
    assert differs["validation"]["auc"] != results["validation"]["auc"]


@pytest.mark.parametrize("at", [3, 8, 20])
def test_interrupted_and_resumed_ends_with_the_same_bits(
    reference, data, config, tmp_path, monkeypatch, at
):
    folder, results = reference
    genuine, count = loop._Trainer._step, 0

    def failing(*args):
        nonlocal count
        count += 1
        if count > at:
            raise KeyboardInterrupt
        return genuine(*args)

    monkeypatch.setattr(loop._Trainer, "_step", failing)
    with pytest.raises(KeyboardInterrupt):
        fit(mlp, config, data, SETTINGS, tmp_path / "run", quiet=True)
    monkeypatch.undo()
    resumed = fit(mlp, config, data, SETTINGS, tmp_path / "run", resume=True, quiet=True)
    assert judged(resumed) == judged(results)
    assert resumed["train"]["examples"] == results["train"]["examples"]
    assert_same_bits(folder, tmp_path / "run")
    assert_same_bits(folder, tmp_path / "run", "best")


@pytest.mark.parametrize("moment", ["in a step", "while validating"])
def test_ctrl_c_loses_no_step(reference, data, config, tmp_path, monkeypatch, moment):
    """It comes when the state is a step ahead of the position, or before an epoch is closed."""
    folder, results = reference
    step, evaluate, at, count = loop._Trainer._step, loop.evaluate, 10, 0

    def interrupted(*args):
        nonlocal count
        count, terms = count + 1, step(*args)
        if count == at:
            os.kill(os.getpid(), signal.SIGINT)
        return terms

    def interrupted_too(*args, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*args, **options)

    if moment == "in a step":
        monkeypatch.setattr(loop._Trainer, "_step", interrupted)
    else:
        monkeypatch.setattr(loop, "evaluate", interrupted_too)
    with pytest.raises(KeyboardInterrupt) as stop:
        fit(mlp, config, data, SETTINGS, tmp_path / "run", quiet=True)
    monkeypatch.undo()
    newest = checkpoints.steps(tmp_path / "run" / "checkpoints" / "last")[0]
    assert isinstance(stop.value, run.Interrupted)
    assert (stop.value.folder, stop.value.step) == (tmp_path / "run", newest)
    size = SETTINGS.batch_size // data.train.candidate.shape[1]
    assert newest == (at if moment == "in a step" else -(-len(data.train) // size))
    resumed = fit(mlp, config, data, SETTINGS, tmp_path / "run", resume=True, quiet=True)
    assert judged(resumed) == judged(results)
    assert resumed["train"]["examples"] == results["train"]["examples"]
    assert_same_bits(folder, tmp_path / "run")
    assert_same_bits(folder, tmp_path / "run", "best")


def test_an_interrupt_before_the_first_step_leaves_nothing(data, config, tmp_path, monkeypatch):
    def interrupted(*args):
        (tmp_path / "run" / "checkpoints" / "last" / "1.partial").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop._Trainer, "_step", interrupted)
    with pytest.raises(run.Interrupted) as stop:
        fit(mlp, config, data, SETTINGS, tmp_path / "run", quiet=True)
    assert stop.value.step is None
    assert not (tmp_path / "run").exists()


def test_the_time_is_said_before_it_has_passed(data, config, tmp_path, capsys):
    """Steps of both epochs, those of one, and scoring; nothing where it is quiet."""
    settings = dataclasses.replace(SETTINGS, batch_size=64)
    results = fit(mlp, config, data, settings, tmp_path / "run")
    steps = 2 * -(-len(data.train) // (64 // data.train.candidate.shape[1]))
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "in all" in x]
    assert line.startswith(f"mlp on market:tiny: {steps:,} steps, 2 epochs at most: about ")
    assert "an epoch, about" in line and line.endswith("in all, scoring included")
    assert results["train"]["epochs"] == 2
    fit(mlp, config, data, settings, tmp_path / "quiet", quiet=True)
    assert capsys.readouterr() == ("", "")


def test_killed_and_resumed_ends_with_the_same_bits(tmp_path):
    """The real thing: another process, SIGKILL at some moment from its first checkpoint on."""
    command = [sys.executable, "-m", "recjax", "train", "mlp", "--data", "market:tiny"]
    command += ["--epochs", "2", "--batch-size", "256", "--set", "checkpoint_every=5"]
    command += ["--set", "tower_units=8", "--out"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}

    def run_it(*more):
        done = subprocess.run([*command, *more], capture_output=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr.decode()

    run_it(str(tmp_path / "whole"))

    killed = tmp_path / "killed"
    child = subprocess.Popen([*command, str(killed)], stderr=subprocess.DEVNULL, env=environment)
    while not (killed / "checkpoints").exists():
        assert child.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.01)
    time.sleep(np.random.default_rng().uniform(0, 0.5))
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (killed / "metrics.json").exists()

    run_it(str(killed), "--resume")
    assert_same_bits(tmp_path / "whole", killed)
    one, two = (
        json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("whole", "killed")
    )
    assert judged(one) == judged(two)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_used(
    reference, data, config, tmp_path
):
    folder, results = reference
    half = dataclasses.replace(SETTINGS, epochs=2)
    fit(mlp, config, data, half, tmp_path / "run", quiet=True)
    newest = max((tmp_path / "run/checkpoints/last").iterdir(), key=lambda p: int(p.name))
    victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged: .* bytes, expected"):
        again = fit(mlp, config, data, half, tmp_path / "run", resume=True, quiet=True)
    assert judged(again) == judged(results)
    assert_same_bits(folder, tmp_path / "run")


def test_test_labels_are_never_seen_before_the_end(reference, data, config, tmp_path):
    folder, results = reference
    rng = np.random.default_rng(0)
    labels = {task: rng.permuted(y, axis=1) for task, y in data.test.label.items()}
    blind = dataclasses.replace(data, test=dataclasses.replace(data.test, label=labels))
    permuted = fit(mlp, config, blind, SETTINGS, tmp_path / "run", quiet=True)
    assert permuted["validation"] == results["validation"]
    assert permuted["test"]["auc"] != results["test"]["auc"]
    for kind in ("last", "best"):
        assert_same_bits(folder, tmp_path / "run", kind)


def test_the_best_epoch_is_kept_and_patience_ends_a_run(data, config, tmp_path, monkeypatch):
    scores = iter([0.6, 0.7, 0.65, 0.64, 0.75, 0.9])
    block = {"auc": 0.0, "gauc": 0.5, "logloss": 0.4}
    judged = []

    def scripted(*args, **kwargs):
        judged.append(np.asarray(args[2]["tables"]["item"]))
        return {**block, "auc": next(scores)}

    def counted(*args, **kwargs):
        at_last.append((np.asarray(args[2]["tables"]["item"]), args[4]))
        return genuine(*args, **kwargs)

    genuine, at_last = loop.predict, []
    monkeypatch.setattr(loop, "evaluate", scripted)
    monkeypatch.setattr(loop, "predict", counted)
    settings = dataclasses.replace(SETTINGS, epochs=5, patience=2, batch_size=4096)
    results = fit(mlp, config, data, settings, tmp_path / "run", quiet=True)
    assert results["train"]["epochs"] == 4 and results["train"]["best_epoch"] == 2
    # At the end the best scores each set once: for its calibration, its picture and its metrics.
    assert [requests is data.test for _, requests in at_last] == [False, True]
    for best, _ in at_last:
        same = [np.array_equal(best, table) for table in judged]
        assert same == [False, True, False, False]
    assert [p.name for p in (tmp_path / "run/checkpoints/best").iterdir()] == ["2"]


def test_steps_limit_a_run(data, config, tmp_path):
    settings = dataclasses.replace(SETTINGS, steps=3)
    results = fit(mlp, config, data, settings, tmp_path / "run", quiet=True)
    assert arrays(tmp_path / "run")[0] == "3"
    assert results["train"]["examples"] == 3 * 510  # 51 requests of 10 candidates


def test_four_devices_train_as_well_as_one(reference, data, config, tmp_path):
    if jax.local_device_count() < 4:
        pytest.skip("needs four (simulated) devices")
    settings = dataclasses.replace(SETTINGS, epochs=1)
    results = fit(mlp, config, data, settings, tmp_path / "run", devices=4, quiet=True)
    assert abs(results["validation"]["auc"] - reference[1]["validation"]["auc"]) < 0.05
    shapes = {n: a.shape for n, a in arrays(tmp_path / "run", "best")[1].items()}
    assert shapes["['tables']['item']"] == (data.schema.table("item").rows, 16)


def test_row_penalty_counts_every_row(data, config, tmp_path):
    settings = dataclasses.replace(SETTINGS, l2=0.01, epochs=1)
    fit(mlp, config, data, settings, tmp_path / "run", quiet=True)
    saved = arrays(tmp_path / "run")[1]
    counts = saved[".occurrences['item']"]
    batches = loop._Trainer(mlp, config, data, settings, 1)._batches
    assert (counts == count_rows(batches)["item"]).all()
    assert counts[0] == 0 and counts.max() <= len(batches) and (counts > 0).mean() > 0.5


def test_a_loss_that_is_not_finite_stops_the_run(data, config, tmp_path):
    settings = dataclasses.replace(SETTINGS, learning_rate=1e30, clip_norm=0.0)
    with pytest.raises(FloatingPointError, match="lower the learning rates"):
        fit(mlp, config, data, settings, tmp_path / "run", quiet=True)


def test_evaluate_gives_the_results_again(reference, tmp_path):
    folder, results = reference
    again = evaluate_run(folder, data="market:tiny")
    assert again["test"] == results["test"]


def test_wrong_folders_and_settings_are_refused(reference, data, config, tmp_path):
    folder, _ = reference
    with pytest.raises(run.RunError, match="is not empty"):
        fit(mlp, config, data, SETTINGS, folder, quiet=True)
    with pytest.raises(run.RunError, match="settings seed was 0, is now 3"):
        other = dataclasses.replace(SETTINGS, seed=3)
        fit(mlp, config, data, other, folder, resume=True, quiet=True)
    with pytest.raises(run.RunError, match="tower_units was .8., is now .9."):
        wider = dataclasses.replace(config, tower_units=(9,))
        fit(mlp, wider, data, SETTINGS, folder, resume=True, quiet=True)
    log = dataclasses.replace(data.log, item=data.log.item[::-1])
    with pytest.raises(run.RunError, match="market:tiny no longer holds the events"):
        changed = dataclasses.replace(data, log=log)
        fit(mlp, config, changed, SETTINGS, folder, resume=True, quiet=True)
    with pytest.raises(run.RunError, match="market:tiny no longer holds the events"):
        known = KnownRows(data.row_maps["item"].signatures + np.uint64(1))
        changed = dataclasses.replace(data, row_maps={**data.row_maps, "item": known})
        fit(mlp, config, changed, SETTINGS, folder, resume=True, quiet=True)
    with pytest.raises(run.RunError, match="has no config.json"):
        evaluate_run(tmp_path)
    with pytest.raises(run.RunError, match="devices must be in"):
        fit(mlp, config, data, SETTINGS, tmp_path / "x", devices=99, quiet=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(run.RunError, match="is a file"):
        fit(mlp, config, data, SETTINGS, tmp_path / "file", quiet=True)


def test_a_checkpoint_of_another_schema_names_the_difference(reference, tmp_path):
    folder, _ = reference
    log = tmp_path / "log.csv"
    log.write_text(
        "user_id,item_id\n" + "".join(f"{u},{i}\n" for u in range(4) for i in range(u, u + 5))
    )
    with pytest.raises(run.RunError, match=r"another schema.*field candidate.category: .*absent"):
        evaluate_run(folder, data=events.load(log))
    # A file is read by the run's own declaration: it lacks these before it can differ.
    with pytest.raises(DataError, match=r"declared columns 'user_segment', .*'price' missing"):
        evaluate_run(folder, data=f"events:{log}")


def test_a_message_shows_the_first_of_many_differences(reference):
    saved = run.load_config(reference[0])
    more = tuple(Table(name=name, rows=5, dim=2) for name in "abcdefghij")
    wider = dataclasses.replace(saved.schema, tables=(*saved.schema.tables, *more))
    with pytest.raises(run.RunError, match=r"table a: absent.*table h: absent.*and 2 more\.$"):
        saved.require_schema(wider)


def test_checkpoints_of_another_shape_are_explained(tmp_path):
    checkpoints.save(tmp_path, 1, {"a": np.zeros(3, np.float32)}, {})
    with pytest.raises(checkpoints.CheckpointError, match=r"\['a'\] has shape .3.*expected .4"):
        checkpoints.restore(tmp_path, {"a": np.zeros(4, np.float32)})
    with pytest.raises(checkpoints.CheckpointError, match=r"\['b'\] is not in it"):
        checkpoints.restore(tmp_path, {"b": np.zeros(3, np.float32)})
    with pytest.raises(checkpoints.CheckpointError, match="there is no checkpoint"):
        checkpoints.restore(tmp_path / "none", {})


@pytest.mark.parametrize("heeded", [True, False])
def test_an_interrupt_waits_for_the_checkpoint(tmp_path, monkeypatch, heeded):
    whole = checkpoints._plain

    def interrupted(state):
        os.kill(os.getpid(), signal.SIGINT)
        return whole(state)

    monkeypatch.setattr(checkpoints, "_plain", interrupted)
    handler = signal.default_int_handler if heeded else signal.SIG_IGN
    usual = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt) if heeded else contextlib.nullcontext():
            checkpoints.save(tmp_path, 1, {"x": np.ones(3)}, {})
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, usual)
    assert checkpoints.steps(tmp_path) == ([] if heeded else [1])


def test_half_written_checkpoints_are_never_taken(tmp_path):
    state = {"a": np.arange(3, dtype=np.float32)}
    checkpoints.save(tmp_path, 1, state, {"n": 1})
    (tmp_path / "2.partial" / "arrays").mkdir(parents=True)
    step, restored, note = checkpoints.restore(tmp_path, state)
    assert step == 1 and note == {"n": 1}
    np.testing.assert_array_equal(restored["a"], state["a"])
    for step in (2, 3, 4):
        checkpoints.save(tmp_path, step, state, {}, keep=2)
    assert sorted(p.name for p in Path(tmp_path).iterdir()) == ["3", "4"]
