import functools

import jax
import numpy as np
import pytest

from recjax.export import stablehlo
from recjax.export.stablehlo import ArtifactError
from recjax.train import launch
from recjax.train.data.batches.assembly import whole_batch
from recjax.train.data.sources import open_source
from recjax.zoo.features import encode

HISTORY = 12


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    settings = {"steps": 2, "batch_size": 64, "history": HISTORY}
    options = {**settings, "attention_units": 4, "tower_units": 8}
    launch.train("din", data="market:tiny", out=folder / "run", options=options, quiet=True)
    manifest = stablehlo.export_run(folder / "run", folder / "artifact")
    return folder, manifest


@pytest.fixture(scope="module")
def batch():
    data = open_source("market:tiny")
    return whole_batch(data.schema, data.log, data.test.take(slice(0, 5)), history=HISTORY)


def scores_of_the_model(folder, batch):
    run = launch.load_run(folder / "run")
    return np.asarray(run.module.apply(run.variables, run.config, batch).logit)


def test_scores_equal_the_models(exported, batch):
    folder, manifest = exported
    assert manifest["largest_difference"] <= 1e-5
    expected = scores_of_the_model(folder, batch)
    artifact = stablehlo.load(folder / "artifact")
    np.testing.assert_allclose(artifact.score(batch), expected, atol=1e-5)
    one = jax.tree.map(lambda x: x[:1], batch)
    np.testing.assert_allclose(artifact.score(one), expected[:1], atol=1e-5)
    assert set(artifact.row_maps) == {table.name for table in artifact.schema.tables}


def test_histories_may_be_shorter_and_not_longer(exported, batch):
    folder, _ = exported
    artifact = stablehlo.load(folder / "artifact")
    short = {**batch, **{r: jax.tree.map(lambda x: x[:, :5], batch[r]) for r in HISTORIES}}
    np.testing.assert_allclose(artifact.score(short), scores_of_the_model(folder, short), atol=1e-5)
    long = {r: jax.tree.map(lambda x: np.concatenate([x, x], 1), batch[r]) for r in HISTORIES}
    with pytest.raises(ArtifactError, match="at most 12 events, got 24"):
        artifact.score({**batch, **long})


def test_nothing_to_score_is_an_empty_answer(exported):
    """As raw records, through the artifact alone: no requests, and requests of no candidates."""
    folder, _ = exported
    artifact = stablehlo.load(folder / "artifact")
    record = {"context": {"time": 5}, "user": {"history": []}, "items": []}
    read = functools.partial(
        encode, schema=artifact.schema, row_maps=artifact.row_maps, history=HISTORY
    )
    nobody = read([])
    assert artifact.score(nobody).shape == (0, 1)
    assert {x.shape for x in artifact.tasks(nobody).values()} == {(0, 1)}
    nothing = read([record, record])
    assert artifact.score(nothing)[nothing["candidate_mask"]].size == 0
    assert artifact.score(nothing).shape == (2, 1)


def test_no_columns_of_candidates_are_an_empty_answer(exported, batch):
    folder, _ = exported
    empty = {r: jax.tree.map(lambda x: x[:, :0], batch[r]) for r in ("candidate", "candidate_mask")}
    assert stablehlo.load(folder / "artifact").score({**batch, **empty}).shape == (5, 0)


@pytest.mark.parametrize("role", ["candidate", "history"])
@pytest.mark.parametrize("beyond", [True, False])
def test_ids_outside_a_table_are_refused(exported, batch, role, beyond):
    folder, _ = exported
    artifact = stablehlo.load(folder / "artifact")
    rows = artifact.schema.table("item").rows
    wrong = rows if beyond else -1
    item = batch[role]["item"].copy()
    item[2, 0] = wrong
    said = f"{role}'..'item'. must hold rows of table 'item', 0 <= row < {rows}, got {wrong}"
    for changed in (item, jax.numpy.asarray(item)):
        with pytest.raises(ArtifactError, match=said):
            artifact.score({**batch, role: {**batch[role], "item": changed}})
    item[2, 0] = rows - 1
    artifact.score({**batch, role: {**batch[role], "item": item}})


HISTORIES = ("history", "history_mask", "history_age")


@pytest.mark.parametrize("name", ["variables.npz", "apply.program", "rows/item.npy"])
def test_damage_is_found(exported, tmp_path, name):
    folder, _ = exported
    for path in (folder / "artifact").rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(folder / "artifact")
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match="damaged"):
        stablehlo.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        stablehlo.load(tmp_path)


def test_errors(exported, tmp_path):
    folder, _ = exported
    with pytest.raises(ArtifactError, match=r"no artifact \(it has no manifest.json\)"):
        stablehlo.load(tmp_path)
    with pytest.raises(ValueError, match="not the folder of a run"):
        stablehlo.export_run(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="is not empty"):
        stablehlo.export_run(folder / "run", folder / "artifact")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ArtifactError, match="din is no retrieval model"):
        stablehlo.load(folder / "artifact").item_vectors({})
