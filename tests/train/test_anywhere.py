"""A run goes on anywhere: on other devices, in another folder, from another working directory."""

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from recjax.train import checkpoints, launch, run
from recjax.train.data.errors import DataError
from recjax.train.data.sources import open_source

TOLERANCE = 1e-4  # Two devices add up a batch in another order than one.


def recjax(*arguments, devices, cwd):
    """Runs the command line in a process of its own with so many devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "recjax", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, env=environment, cwd=cwd, timeout=300, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "log.csv"
    rows = [f"{u},{(u * 7 + s * s) % 23},{1000 * s}" for u in range(60) for s in range(9)]
    path.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    return path


# 33 candidates are 3 requests of 11: two devices share 4.
OPTIONS = ("--epochs", 2, "--batch-size", 33, "--set", "tower_units=8", "--set", "negatives=10")


@pytest.fixture(scope="module")
def two(log, tmp_path_factory):
    """A whole run on two devices, its data named from where it stood: folder and results."""
    folder = tmp_path_factory.mktemp("two") / "run"
    arguments = ("train", "mlp", "--data", "events:log.csv", "--out", folder, *OPTIONS)
    results = recjax(*arguments, "--devices", 2, devices=2, cwd=log.parent)
    return folder, results


def test_a_run_of_two_devices_evaluates_and_exports_on_one(two, tmp_path):
    moved = shutil.copytree(two[0], tmp_path / "elsewhere" / "moved")
    again = recjax("evaluate", "moved", devices=1, cwd=moved.parent)
    assert again["test"] == two[1]["test"]
    recjax("export", "moved", "--out", "artifact", devices=1, cwd=moved.parent)
    assert (moved.parent / "artifact" / "manifest.json").is_file()


def stopped(folder):
    """Leaves the run as an interrupt after its first checkpoints would have."""
    last = folder / "checkpoints" / "last"
    shutil.rmtree(last / str(checkpoints.steps(last)[0]))
    shutil.rmtree(folder / "checkpoints" / "best")
    (folder / "metrics.json").unlink()
    assert checkpoints.newest_note(last)["index"] > 0
    return folder


@pytest.fixture(scope="module")
def train(log):
    """Trains for 20 steps on some devices, from the folder of the log."""
    dataset = open_source(f"events:{log}")

    def train(out, devices, resume=False):
        return launch.train(
            "mlp",
            data=dataset,
            out=out,
            options={
                "steps": 20,
                "batch_size": 33,
                "negatives": 10,
                "checkpoint_every": 7,
                "tower_units": 8,
                "embedding_dropout": 0,
            },
            devices=devices,
            resume=resume,
            quiet=True,
        )[1]

    return train


@pytest.mark.skipif(jax.local_device_count() < 2, reason="needs two (simulated) devices")
def test_a_run_of_two_devices_is_resumed_on_one(train, tmp_path):
    whole = train(tmp_path / "run", 2)
    held = checkpoints.restore(tmp_path / "run/checkpoints/best", like(tmp_path / "run"))[1]
    resumed = train(stopped(tmp_path / "run"), 1, resume=True)
    assert resumed["train"]["examples"] == whole["train"]["examples"]
    assert resumed["test"]["logloss"] == pytest.approx(whole["test"]["logloss"], abs=TOLERANCE)
    again = checkpoints.restore(tmp_path / "run/checkpoints/best", like(tmp_path / "run"))[1]
    for one, other in zip(jax.tree.leaves(held), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, atol=TOLERANCE)


def like(folder):
    trained = launch.load_run(folder)
    return trained.variables


@pytest.mark.skipif(jax.local_device_count() < 2, reason="needs two (simulated) devices")
def test_batches_that_more_devices_cannot_share_are_refused(train, tmp_path):
    train(tmp_path / "run", 1)
    with pytest.raises(run.RunError, match="hold 3 requests, which 2 devices cannot share alike"):
        train(stopped(tmp_path / "run"), 2, resume=True)


def test_data_that_are_gone_are_named_with_the_remedy(log, two, tmp_path, monkeypatch):
    folder = shutil.copytree(two[0], tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    assert config["data"] == f"events:{log}"
    config["data"] = f"events:{tmp_path / 'gone.csv'}"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="gone.csv: the data of the run .* by --data events:PATH"):
        launch.evaluate_run(folder)
    monkeypatch.chdir(log.parent)
    again = launch.evaluate_run(folder, data="events:log.csv")
    assert again["test"]["examples"] == two[1]["test"]["examples"]


def test_a_run_is_resumed_where_its_data_went(log, tmp_path):
    first = tmp_path / "first" / "log.csv"
    first.parent.mkdir()
    shutil.copy(log, first)
    out, options = tmp_path / "run", {"epochs": 1, "checkpoint_every": 5, "tower_units": 8}
    ask = dict(options=options, out=out, quiet=True)
    whole = launch.train("mlp", data=f"events:{first}", **ask)[1]
    stopped(out)
    other = shutil.copy(log, tmp_path / "other.csv")
    with pytest.raises(run.RunError, match="cannot be resumed: data was events:.*first/log.csv"):
        launch.train("mlp", data=f"events:{other}", resume=True, **ask)
    first.unlink()
    with pytest.raises(DataError, match="no longer there; say where they are by --data"):
        launch.train("mlp", resume=True, **ask)
    resumed = launch.train("mlp", data=f"events:{other}", resume=True, **ask)[1]
    assert resumed["test"] == whole["test"]
    assert launch.train("mlp", resume=True, **ask)[1]["test"] == whole["test"]
    assert launch.evaluate_run(out)["test"] == whole["test"]  # It knows the new place.
    stopped(out)
    changed = tmp_path / "changed.csv"
    changed.write_text(log.read_text().replace("\n7,", "\n77,"))
    Path(other).unlink()
    with pytest.raises(run.RunError, match="no longer holds the events"):
        launch.train("mlp", data=f"events:{changed}", resume=True, **ask)


def test_pairs_that_are_gone_are_named_with_the_remedy(log, tmp_path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("user_id,item_id\n" + "".join(f"{u},{i}\n" for u in range(60) for i in (1, 2)))
    out = tmp_path / "run"
    settings = {"epochs": 1, "checkpoint_every": 2, "evaluation_negatives": str(pairs)}
    source = f"events:{log}"
    whole = launch.train("mlp", data=source, options=settings, out=out, quiet=True)[1]
    moved = pairs.rename(tmp_path / "moved.csv")
    with pytest.raises(run.RunError, match="pairs.csv: the pairs that .* --set evaluation_negativ"):
        launch.evaluate_run(out)
    again = launch.evaluate_run(out, options=launch.options_of([f"evaluation_negatives={moved}"]))
    assert again["test"] == whole["test"]
    stopped(out)
    ask = {**settings, "evaluation_negatives": str(moved)}
    resumed = launch.train("mlp", options=ask, out=out, resume=True, quiet=True)[1]
    assert resumed["test"] == whole["test"]
    other = launch.evaluate_run(out, options={"evaluation_negatives": "uniform"})
    assert other["test"]["examples"] == 120 != whole["test"]["examples"]
    with pytest.raises(ValueError, match="--set takes evaluation_negatives=... here, got 'split'"):
        launch.evaluate_run(out, options={"split": "time"})


def test_columns_of_any_name(tmp_path):
    """In another script, long, and told from another by capitals alone: each has a vocabulary."""
    names = ("用户最近三十天内在移动端浏览商品详情页的平均停留时长分档", "Kind", "kind", "类" * 200)
    path = tmp_path / "log.csv"
    rows = [
        f"{u},{(u * 7 + s * s) % 23}," + ",".join(f"{name[-1]}{u % 4}" for name in names)
        for u in range(30)
        for s in range(5)
    ]
    path.write_text("\n".join([",".join(("user_id", "item_id", *names)), *rows, ""]))
    folder, results = launch.train(
        "mlp",
        data=f"events:{path}",
        out=tmp_path / "run",
        options={"steps": 1, "tower_units": 8},
        quiet=True,
    )
    vocabularies = {file.name.lower() for file in (folder / "rows").iterdir()}
    assert len(vocabularies) == len(names) + 1  # and the items'
    again = launch.evaluate_run(folder)
    assert again["test"] == results["test"]


def test_what_several_devices_hold_is_saved_once_and_restored_onto_one(tmp_path):
    if jax.local_device_count() < 2:
        pytest.skip("needs two (simulated) devices")
    mesh = Mesh(np.array(jax.local_devices()[:2]), ("x",))
    value = np.arange(8, dtype=np.float32)
    state = {
        "copies": jax.device_put(value, NamedSharding(mesh, PartitionSpec())),
        "parts": jax.device_put(value, NamedSharding(mesh, PartitionSpec("x"))),
        "second": jax.device_put(value, jax.local_devices()[1]),
        "number": jax.numpy.int32(3),
    }
    checkpoints.save(tmp_path, 1, state, {})
    _, restored, _ = checkpoints.restore(tmp_path, state)
    for name, array in restored.items():
        assert array.devices() == {jax.local_devices()[0]}, name
        np.testing.assert_array_equal(array, state[name])
    with jax.default_device(jax.local_devices()[1]):
        assert checkpoints.restore(tmp_path, state)[1]["parts"].devices() == {
            jax.local_devices()[1]
        }


def test_checkpoints_that_name_their_devices_are_restored(tmp_path):
    """As earlier versions wrote them: Orbax was given the arrays where they lay."""
    import orbax.checkpoint as ocp

    if jax.local_device_count() < 2:
        pytest.skip("needs two (simulated) devices")
    checkpoints.save(tmp_path, 1, {"x": np.zeros(3, np.float32)}, {})
    value = jax.device_put(np.arange(3, dtype=np.float32), jax.local_devices()[1])
    shutil.rmtree(tmp_path / "1" / "arrays")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "1" / "arrays", {"['x']": value})
    sums = checkpoints._checksums(tmp_path / "1")
    (tmp_path / "1" / "manifest.json").write_text(json.dumps(sums))
    restored = checkpoints.restore(tmp_path, {"x": value})[1]["x"]
    assert restored.devices() == {jax.local_devices()[0]}
    np.testing.assert_array_equal(restored, [0, 1, 2])
