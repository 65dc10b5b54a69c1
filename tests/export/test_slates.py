"""What re-ranks, exported: evaluators, generators, LAST."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from recjax.export import artifact as artifacts
from recjax.export.artifact import ArtifactError
from recjax.export.stablehlo import export_run
from recjax.zoo.rerank import evaluator, generator, last, nar, seq2slate
from reranking import CONFIG, JUDGES, SCHEMA, evaluators_of, generator_of, requests
from runs import fresh, saved

NAR = nar.Config(schema=SCHEMA, slots=3)
SEQ2SLATE = seq2slate.Config(schema=SCHEMA, units=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Runs by name; the first judge is not the second."""
    where = tmp_path_factory.mktemp("runs")
    first, second = evaluators_of(2).variables
    return {
        "generator": saved(where / "generator", "generator", CONFIG, generator_of().variables),
        "nar": saved(where / "nar", "nar", NAR, fresh(nar, NAR)),
        "seq2slate": saved(
            where / "seq2slate", "seq2slate", SEQ2SLATE, fresh(seq2slate, SEQ2SLATE)
        ),
        "judge": saved(where / "judge", "evaluator", JUDGES, first),
        "judge-2": saved(where / "judge-2", "evaluator", JUDGES, second),
    }


@pytest.mark.parametrize("name", ["generator", "nar", "seq2slate"])
def test_a_generator_writes_the_same_slates(folders, tmp_path, name):
    manifest = export_run(folders[name], tmp_path / "out")
    assert manifest["largest_difference"] == 0.0
    artifact = artifacts.load(tmp_path / "out")
    module = {"generator": generator, "nar": nar, "seq2slate": seq2slate}[name]
    config = {"generator": CONFIG, "nar": NAR, "seq2slate": SEQ2SLATE}[name]
    variables = generator_of().variables if name == "generator" else fresh(module, config)
    seen = set()
    for batch in (requests(), requests(batch=1, candidates=9), requests(candidates=2)):
        expected = module.apply(variables, config, batch).order
        np.testing.assert_array_equal(artifact.slate(batch), expected)
        seen |= {tuple(row) for row in np.asarray(expected).tolist()}
    assert len(seen) > 2
    nobody = jax.tree.map(lambda x: x[:0], batch)
    assert artifact.slate(nobody).shape == (0, np.shape(expected)[1])
    with pytest.raises(ArtifactError, match=r"gives .*order.*: use slate\(\)"):
        artifact.score(batch)


PRESETS = {
    "default": (1, {}),
    "cautious": (2, {}),
    "official": (1, {"candidates": 8}),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_last_in_one_program(folders, tmp_path, preset):
    count, sizes = PRESETS[preset]
    judges = [folders["judge"], folders["judge-2"]][:count]
    export_run(
        folders["generator"], tmp_path / "out", evaluators=judges, preset=preset,
        platforms=["cpu"], **sizes,
    )  # fmt: skip
    artifact = artifacts.load(tmp_path / "out")
    assert artifact.manifest["last"]["preset"] == preset
    moved = False
    generator_, by = generator_of(), evaluators_of(count, worth=(1.0, 0.0))
    choose = jax.jit(lambda batch, seeds: last.last_parallel(
        generator_, by, batch, last.PRESETS[preset], seeds=seeds
    ))  # fmt: skip
    for batch in (requests(), requests(batch=7, candidates=8, seed=1)):
        seeds = np.arange(len(batch["candidate_mask"]), dtype=np.uint32) + 5
        chosen = choose(padded(batch, sizes.get("candidates")), seeds)
        drawn = {"seeds": seeds} if preset == "official" else {}
        np.testing.assert_array_equal(artifact.slate(batch, **drawn), chosen.order)
        moved |= bool((chosen.best > 0).any())
    assert moved, "the greedy slates are all that was seen"


def padded(batch, candidates):
    """What a program of a fixed number of candidates gets to see."""
    more = (candidates or 0) - batch["candidate_mask"].shape[1]
    if more <= 0:
        return batch
    wider = lambda x: np.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2))
    return {r: jax.tree.map(wider, x) if r.startswith("candidate") else x for r, x in batch.items()}


def test_draws_follow_their_seeds(folders, tmp_path):
    judge = [folders["judge"]]
    export_run(
        folders["generator"],
        tmp_path / "out",
        evaluators=judge,
        preset="official",
        candidates=8,
        platforms=["cpu"],
    )
    artifact, batch = artifacts.load(tmp_path / "out"), requests(batch=32, candidates=8)
    zeros = np.zeros(32, np.uint32)
    usual, other = artifact.slate(batch), artifact.slate(batch, seeds=zeros + 77)
    again = artifact.slate(batch, seeds=zeros)
    np.testing.assert_array_equal(usual, again)
    assert (usual != other).any()
    with pytest.raises(ArtifactError, match=r"seeds must be uint32 of shape \(32,\), got int64"):
        artifact.slate(batch, seeds=np.arange(32))


def test_an_evaluator_judges_slates_of_up_to_its_slots(folders, tmp_path):
    export_run(folders["judge"], tmp_path / "out", platforms=["cpu"])
    artifact, variables = artifacts.load(tmp_path / "out"), evaluators_of(2).variables[0]
    for slots in (3, 2, 1):
        batch = requests(candidates=slots)
        expected = evaluator.apply(variables, JUDGES, batch)
        real = batch["candidate_mask"]
        np.testing.assert_allclose(
            np.asarray(artifact.score(batch))[real], expected.logit[real], atol=1e-5
        )
        assert set(artifact.tasks(batch)) == {"click", "purchase"}
    with pytest.raises(ArtifactError, match="takes at most 3 candidates, got 4"):
        artifact.score(requests(candidates=4))
    with pytest.raises(ArtifactError, match=r"gives log.*: use score\(\)"):
        artifact.slate(batch)


def test_fixed_sizes_are_padded_and_never_exceeded(folders, tmp_path):
    export_run(folders["generator"], tmp_path / "out", requests=4, candidates=7, platforms=["cpu"])
    artifact = artifacts.load(tmp_path / "out")
    for batch in (requests(4, 7), requests(2, 5), requests(1, 2)):
        expected = generator.apply(generator_of().variables, CONFIG, batch).order
        np.testing.assert_array_equal(artifact.slate(batch), expected)
    with pytest.raises(ArtifactError, match="takes at most 4 requests, got 5"):
        artifact.slate(requests(5, 7))
    with pytest.raises(ArtifactError, match="takes at most 7 candidates, got 8"):
        artifact.slate(requests(4, 8))


def test_a_batch_of_another_schema_is_refused(folders, tmp_path):
    export_run(folders["generator"], tmp_path / "out", platforms=["cpu"])
    artifact, batch = artifacts.load(tmp_path / "out"), requests()
    same = artifact.slate(batch, schema_hash=SCHEMA.hash)
    np.testing.assert_array_equal(same, artifact.slate(batch))
    with pytest.raises(ArtifactError, match="made under schema abc, the artifact serves"):
        artifact.slate(batch, schema_hash="abc")


@pytest.mark.parametrize(
    "name, options, reason",
    [
        ("generator", {"evaluators": ["judge"], "preset": "cautious"}, "needs several evaluators"),
        ("generator", {"evaluators": ["judge"], "preset": "bold"}, "choose from default, official"),
        ("generator", {"evaluators": ["judge"], "preset": "official"}, "name it .--candidates N."),
        ("judge", {"evaluators": ["judge-2"]}, "evaluator cannot be LAST.s"),
        ("judge", {"candidates": 5}, "the 3 slots of its slates, got 5"),
        ("generator", {"requests": 2, "candidates": 5}, "for one platform"),
        ("generator", {"requests": 0}, "requests must be >= 1, got 0"),
        ("generator", {"platforms": ["rocm"]}, "platforms must be some of cpu, cuda, tpu"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing_behind(folders, tmp_path, name, options, reason):
    options = {**options, "evaluators": [folders[one] for one in options.get("evaluators", [])]}
    with pytest.raises(ArtifactError, match=reason) as caught:
        export_run(folders[name], tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_loader_needs_jax_numpy_and_the_schema_alone(folders, tmp_path):
    """In a process that can import nothing else that is installed."""
    export_run(folders["generator"], tmp_path / "out", evaluators=[folders["judge"]])
    batch = requests()
    np.savez(
        tmp_path / "batch.npz",
        **{"/".join(k.key for k in p): x for p, x in jax.tree.leaves_with_path(batch)},
    )
    code = f"""
import importlib.abc, importlib.metadata, sys
ALLOWED = {{"jax", "jaxlib", "numpy", "ml_dtypes", "scipy", "opt_einsum", "flatbuffers", "recjax"}}
REFUSED = importlib.metadata.packages_distributions().keys() - ALLOWED
assert {{"flax", "pyarrow", "jaxtyping", "rich", "orbax"}} <= REFUSED
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"{{name}} is not there")
sys.meta_path.insert(0, Refuse())
import numpy as np
from recjax.export.artifact import load
batch = {{}}
for name, value in np.load({str(tmp_path / "batch.npz")!r}).items():
    role, *leaf = name.split("/")
    if leaf:
        batch.setdefault(role, {{}})[leaf[0]] = value
    else:
        batch[role] = value
print(np.asarray(load({str(tmp_path / "out")!r}).slate(batch)).tolist())
ours = sorted(name for name in sys.modules if name.startswith("recjax."))
print([n for n in ours if not n.startswith(("recjax.zoo.features", "recjax.export"))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    slate, others = done.stdout.splitlines()[-2:]
    assert others == "['recjax.zoo', 'recjax.zoo.batch', 'recjax.zoo.calibration']"
    expected = artifacts.load(tmp_path / "out").slate(batch)
    assert slate == str(np.asarray(expected).tolist())


def test_kernels_that_cannot_be_called_are_said(folders, tmp_path):
    export_run(folders["judge"], tmp_path / "out", platforms=["cpu"])
    path = tmp_path / "out" / "manifest.json"
    path.write_text(path.read_text().replace('"needs": []', '"needs": ["no_such_package"]'))
    with pytest.raises(ArtifactError, match="kernels that need no_such_package: pip install"):
        artifacts.load(tmp_path / "out")


ODD = {
    "fewer preferences": ("preference", lambda x: x[:1], "must have shape .4, 2., got"),
    "no number": ("preference", lambda x: x * np.nan, "must hold finite numbers >= 0"),
    "a mask of numbers": ("candidate_mask", lambda x: x.astype(int), "must hold bool, got int64"),
    "no mask": ("candidate_mask", lambda x: None, "must hold 'candidate_mask'"),
    "no dict": ("candidate", lambda x: 3, "'candidate'. must be a dict of fields, got 3"),
    "words for ids": (
        "candidate",
        lambda x: {**x, "item": np.full(x["item"].shape, "a")},
        "must hold whole numbers",
    ),
}


@pytest.fixture(scope="module")
def preferring(tmp_path_factory):
    """LAST with preferences: its evaluators' worth has a row for each."""
    where = tmp_path_factory.mktemp("preferring")
    config = dataclasses.replace(CONFIG, preferences=("clicks", "purchases"))
    run = saved(where / "run", "generator", config, fresh(generator, config))
    judge = saved(where / "judge", "evaluator", JUDGES, evaluators_of().variables[0])
    options = dict(evaluators=[judge], platforms=["cpu"], worth=((1.0, 0.0), (0.0, 1.0)))
    export_run(run, where / "out", **options)
    return artifacts.load(where / "out")


def with_preferences():
    return {**requests(), "preference": np.full((4, 2), 0.5, np.float32)}


@pytest.mark.parametrize("case", ODD)
def test_odd_batches_are_refused_in_one_line(preferring, case):
    part, change, reason = ODD[case]
    batch = with_preferences()
    assert preferring.slate(batch).shape == (4, 3)
    with pytest.raises(ArtifactError, match=reason) as caught:
        preferring.slate({**batch, part: change(batch[part])})
    assert "\n" not in str(caught.value)


def test_numbers_of_other_types_are_the_same_numbers(preferring):
    batch = with_preferences()
    item, price = (batch["candidate"][name] for name in ("item", "price"))
    other = {**batch["candidate"], "item": item.astype(np.uint8), "price": price.tolist()}
    expected = preferring.slate(batch)
    np.testing.assert_array_equal(preferring.slate({**batch, "candidate": other}), expected)


@pytest.mark.parametrize(
    "key", ["files", "schema_hash", "history", "programs", "needs", "outputs", "sizes", "platforms"]
)
def test_a_manifest_that_lacks_something_is_refused(tmp_path, key):
    content = {"files": {}, "schema": SCHEMA.to_dict(), "schema_hash": SCHEMA.hash}
    content |= {"history": 1, "programs": ["apply"], "needs": [], "sizes": {}}
    content |= {"outputs": {"apply": []}, "platforms": ["cpu"]}
    del content[key]
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=f"cannot be read: it lacks '{key}'"):
        artifacts.load(tmp_path)


def test_a_manifest_that_does_not_vouch_for_its_programs_is_refused(folders, tmp_path):
    export_run(folders["judge"], tmp_path / "out", platforms=["cpu"])
    path = tmp_path / "out" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": {}}))
    with pytest.raises(ArtifactError, match="it lists no apply.program, variables.npz"):
        artifacts.load(tmp_path / "out")


def test_options_of_last_need_evaluators_and_those_are_named_once(folders, tmp_path):
    for options, reason in (
        ({"preset": "cautious"}, "LAST needs evaluators"),
        ({"evaluators": [folders["judge"]] * 2, "preset": "cautious"}, "is named twice"),
    ):
        with pytest.raises(ArtifactError, match=reason):
            export_run(folders["generator"], tmp_path / "deep" / "out", **options)
    assert not list(tmp_path.iterdir())


def test_what_stands_beside_the_artifact_stays(folders, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "empty")
    export_run(folders["judge"], tmp_path / "out", platforms=["cpu"])
    assert (tmp_path / "out.partial" / "mine").read_text() == "x"
    artifacts.load(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.partial", "empty"}
